"""Pools: maxima and averages of windows, and of whole images."""

import torch

from qcompiler.backends.tvm.families.base import Layer, Places, across, layer, scale, shape_of, zero_point
from qcompiler.backends.tvm.kernels import pool as pools
from qcompiler.ir import arguments
from qcompiler.passes.partition import Region

aten = torch.ops.aten


def max_pool(places: Places, region: Region) -> Layer | None:
    pool, x = sliding(places, region), places.plane(region.operands[0])
    if pool is None:
        return None
    return layer("maximum", ("max", pool), lambda name: pools.max_pool(pool, places.isa, name), (x,), region)


def average_pool(places: Places, region: Region) -> Layer | None:
    pool, given = sliding(places, region), arguments(region.anchor)
    if pool is None:
        return None
    average = pools.Average(
        count_include_pad=given["count_include_pad"],
        divisor=given.get("divisor_override"),
        x_zero=zero_point(places, region.operands[0]),
        y_zero=zero_point(places, region.result),
    )
    return layer(
        "average", ("average", pool, average),
        lambda name: pools.average_pool(pool, average, places.isa, name),
        (places.plane(region.operands[0]),), region,
        factor=(scale(places, region.operands[0]) / scale(places, region.result)).reshape(1).numpy(),
    )  # fmt: skip


def global_average(places: Places, region: Region) -> Layer | None:
    if region.operands[0] not in places.images:
        return None  # three axes of space
    name = places.plane(region.operands[0])
    x = places.stores[name].plane
    if x.pitch % places.isa.lanes:
        return None
    y = places.result(region)
    average = pools.Average(
        x_zero=zero_point(places, region.operands[0]), y_zero=zero_point(places, region.result)
    )
    steps = scale(places, region.result).double() * x.height * x.width
    return layer(
        "global average", ("global", x, y, average),
        lambda made: pools.global_average_pool(x, y, average, places.isa, made), (name,), region,
        factor=(scale(places, region.operands[0]).double() / steps).float().reshape(1).numpy(),
    )  # fmt: skip


def sliding(places: Places, region: Region) -> pools.Pool | None:
    """The window of a pool; None where the kernel does not take the plane."""
    given = arguments(region.anchor)
    flat = region.anchor.target in (aten.avg_pool1d.default, aten.max_pool1d.default)
    if len(shape_of(region.operands[0])) != (3 if flat else 4):
        return None  # not a batch of images, or of lines
    x = places.stores[places.plane(region.operands[0])].plane
    if x.pitch % places.isa.lanes:
        return None
    return pools.Pool(
        x=x, y=places.result(region), kernel=across(given["kernel_size"], flat, 1),
        stride=across(given["stride"] or given["kernel_size"], flat, 1),
        padding=across(given["padding"], flat, 0), dilation=across(given.get("dilation", 1), flat, 1),
    )  # fmt: skip
