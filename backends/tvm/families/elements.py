"""Element by element: sums, products, tables of 256 entries, and concatenation along channels."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from qcompiler.backends.reference.kernels import multiply_add
from qcompiler.backends.tvm.families.base import Layer, Places, entries, layer, scale, shape_of, zero_point
from qcompiler.backends.tvm.kernels import add as kernels
from qcompiler.backends.tvm.plane import Plane, pitch_of
from qcompiler.backends.tvm.program import Store
from qcompiler.ir import arguments
from qcompiler.passes.partition import Region


def add(places: Places, region: Region) -> Layer | None:
    """r_a, r_b and z_y - (r_a z_a + r_b z_b), as the reference forms them."""
    result = scale(places, region.result)
    (ratio_a, zero_a), (ratio_b, zero_b) = (
        (scale(places, x) / result, torch.tensor(float(zero_point(places, x)))) for x in region.operands
    )
    fixed = float(zero_point(places, region.result)) - multiply_add(zero_a, ratio_a, ratio_b * zero_b)
    steps = np.array([ratio_a, ratio_b, fixed], np.float32)
    return of_two(places, region, "sum", steps, lambda both, name: kernels.add(both, places.isa, name), ())


def multiply(places: Places, region: Region) -> Layer | None:
    a, b, y = (zero_point(places, node) for node in (*region.operands, region.result))
    steps = np.array([scale(places, node) for node in (*region.operands, region.result)], np.float32)
    known = kernels.Zeros(a=a, b=b, y=y)
    return of_two(
        places, region, "product", steps,
        lambda both, name: kernels.multiply(both, known, places.isa, name), known,
    )  # fmt: skip


def of_two(
    places: Places,
    region: Region,
    kernel: str,
    steps: NDArray[Any],
    make: Callable[[Any, str], Any],
    more: Any,
) -> Layer | None:
    known = {i: laid(places, region, x) for i, x in enumerate(region.operands) if is_constant(x)}
    computed = [x for x in region.operands if not is_constant(x)]
    if not all(fits(places, x, region.result) for x in computed):
        return None  # a tensor that is repeated along rows or channels
    names = [places.plane(operand) for operand in computed]
    planes = [places.stores[name].plane for name in names]
    if any(plane.pitch % places.isa.lanes for plane in planes):
        return None
    for i, (plane, _) in known.items():
        names.insert(i, f"{region.anchor.name}.constant{i}")
        planes.insert(i, plane)
    first, second = planes
    both = kernels.Pair(a=first, b=second, y=places.result(region))
    found = layer(
        kernel, (kernel, both, more), lambda name: make(both, name), tuple(names), region, numbers=steps
    )
    constants = {names[i]: codes for i, (_, codes) in known.items()}
    return replace(found, constants={**found.constants, **constants})


def is_constant(operand: Node) -> bool:
    codes = operand.args[0]
    return isinstance(codes, Node) and codes.op == "get_attr"


def fits(places: Places, operand: Node, result: Node) -> bool:
    """Whether a value has the shape of the result, or is an image with one line, pixel or image of it."""
    own, whole = places.shapes[operand], places.shapes[result]
    if own == whole:
        return True
    are_images = operand in places.images and result in places.images and len(own) == len(whole)
    return are_images and own[1] == whole[1] and all(a in (1, b) for a, b in zip(own, whole, strict=True))


def laid(places: Places, region: Region, operand: Node) -> tuple[Plane, NDArray[np.uint8]]:
    """A constant on a plane of its own, with a single image, line or pixel where it is the same in all."""
    whole = places.shapes[region.result]
    codes = places.tensor(operand.args[0])
    codes = codes.reshape((1,) * (len(whole) - codes.dim()) + codes.shape)
    if region.result in places.images:
        codes = codes.expand(-1, whole[1], *[-1] * (len(whole) - 2))
        codes = codes[:, :, None] if codes.dim() == 3 else codes
        by_pixel = codes.permute(0, 2, 3, 1)
    else:
        by_row = codes.shape[:-1].numel() > 1
        codes = codes.expand(*(whole[:-1] if by_row else codes.shape[:-1]), whole[-1])
        by_pixel = codes.reshape(1, 1, -1, whole[-1])
    images, height, width, channels = by_pixel.shape
    plane = Plane(images=images, height=height, width=width, channels=channels, pitch=pitch_of(channels))
    memory = np.zeros(plane.size, np.uint8)
    Store(plane=plane).inside(memory)[:] = by_pixel.numpy()
    return plane, memory


def table(places: Places, region: Region) -> Layer | None:
    name = places.plane(region.operands[0])
    x = places.stores[name].plane
    if x.pitch % places.isa.lanes:
        return None
    y = places.result(region)
    return layer(
        "table", ("table", x, y), lambda made: kernels.table(x, y, places.isa, made), (name,), region,
        table=entries(places, region, region.operands[0]),
    )  # fmt: skip


def concatenate(places: Places, region: Region) -> Layer | None:
    """Along channels only: side by side in every pixel."""
    rank = len(shape_of(region.anchor))
    channels_last = region.anchor not in places.images
    if int(arguments(region.anchor)["dim"]) % rank != (rank - 1 if channels_last else 1):
        return None
    names = [places.plane(operand) for operand in region.operands]
    inputs = tuple(places.stores[name].plane for name in names)
    y = places.result(region)
    tables = {f"table{i}": entries(places, region, operand) for i, operand in enumerate(region.operands)}
    return layer(
        "concatenation", ("cat", inputs, y), lambda made: kernels.concatenate(inputs, y, places.isa, made),
        tuple(names), region, **tables,
    )  # fmt: skip
