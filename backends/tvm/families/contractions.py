"""Convolutions and linears, with what the kernel does behind the sums."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.tvm.families.base import (
    Layer,
    Places,
    across,
    by_rows,
    entries,
    is_ranged,
    layer,
    scale,
    zero_point,
)
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels import depthwise as channels
from qcompiler.backends.tvm.kernels.conv import LINE, Convolution, convolution, merged, pack
from qcompiler.backends.tvm.plane import pitch_of
from qcompiler.ir import arguments
from qcompiler.passes.partition import Region

FARTHEST = 2.0**31 - 256  # what is rounded to int32 must fit


@dataclass(frozen=True, kw_only=True)
class Contraction:
    """A convolution, or a linear as one of a single pixel: codes [O, C / groups, KH, KW]."""

    codes: NDArray[np.int8]
    window: Mapping[str, tuple[int, int]]
    groups: int


def contraction(places: Places, region: Region) -> Layer | None:
    assert region.weight is not None
    given = arguments(region.anchor)
    codes = places.tensor(arguments(region.weight)["q"]).numpy()
    found = Contraction(codes=codes[..., None, None], window={}, groups=1)
    if region.row.formula == "linear" and not by_rows(places, region):
        return None
    if region.row.formula == "conv":
        flat = codes.ndim == 3  # along a line: an image of height 1
        window = {
            name: across(given[name], flat, still)
            for name, still in (("stride", 1), ("padding", 0), ("dilation", 1))
        }
        codes = codes[:, :, None] if flat else codes
        found = Contraction(codes=codes, window=window, groups=given["groups"])
    if region.returns_codes and reach(places, region, codes) >= FARTHEST:
        return None
    x = places.stores[places.plane(region.operands[0])].plane
    by_channel = found.groups == x.channels == len(codes) and x.pitch % channels.PART == 0
    if by_channel and region.residual is None and not is_ranged(region.operands[0]):
        return depthwise(places, region, found)
    return convolved(places, region, found)


def depthwise(places: Places, region: Region, found: Contraction) -> Layer:
    isa, x = places.isa, places.plane(region.operands[0])
    each = channels.Depthwise(
        x=places.stores[x].plane, y=places.result(region), kernel=found.codes.shape[2:],
        zero_point=zero_point(places, region.result), **found.window,
    )  # fmt: skip
    bias, multiplier = numbers(places, region, found.codes)
    patch = places.choose(each)
    return layer(
        "depthwise", each, lambda name: channels.depthwise(each, patch, isa, name), (x,), region,
        weights=channels.pack(each, found.codes, isa), bias=channels.arranged(each, bias, isa),
        multiplier=channels.arranged(each, multiplier, isa),
    )  # fmt: skip


def convolved(places: Places, region: Region, found: Contraction) -> Layer:
    """With what the kernel does behind the sums: a residual of codes, an addend of floats, a table."""
    isa, x = places.isa, places.plane(region.operands[0])
    now = ()
    if is_ranged(region.operands[0]):
        now = tuple(arguments(region.operands[0])[name].name for name in ("scale", "zero_point"))
    residual = None if region.residual is None else places.plane(region.residual)
    addend = None if region.addend is None else places.rows(region.addend)
    codes, groups = merged(found.codes, found.groups, isa)
    y = places.plane_of(region.result, 0)
    alone = Convolution(
        x=places.stores[x].plane, y=replace(y, pitch=pitch_of(y.channels)), groups=groups,
        kernel=codes.shape[2:], to_float=not region.returns_codes, table=False, **found.window,
        shifted=region.returns_codes and zero_point(places, region.result) != 0,
        residual=None if residual is None else places.stores[residual].plane,
        addend=None if addend is None else places.stores[addend].plane,
        ranged=bool(now), offset=bool(now) and region.bias is not None,
    )  # fmt: skip
    table = places.table_behind(region, alone)
    whole = replace(alone, y=places.result(table or region), table=table is not None)
    bias, multiplier = (filled(vector, whole, isa) for vector in numbers(places, region, found.codes))
    constants = {
        "weights": np.concatenate([pack(whole, codes, isa).reshape(-1), np.zeros(LINE, np.int8)]),
        "bias": bias, "multiplier": multiplier,
    }  # fmt: skip
    if whole.offset:
        constants["offset"] = filled(places.tensor(region.bias).float().numpy(), whole, isa)
    if region.residual is not None:
        ratio = scale(places, region.residual) / scale(places, region.result)
        offset = -places.tensor(arguments(region.residual)["zero_point"]).float() * ratio
        constants["ratio"] = np.array([ratio, offset], np.float32)
    if table is not None:
        constants["table"] = entries(places, table, table.operands[0])
    if whole.shifted:
        constants["zero"] = np.array([zero_point(places, region.result)], np.int32)
    planes = (*(name for name in (x, residual, addend) if name is not None), *now)
    tile = places.choose(whole)
    made = layer(
        "convolution", whole, lambda name: convolution(whole, tile, isa, name), planes,
        region, **constants,
    )  # fmt: skip
    return made if table is None else replace(made, results=(table.result.name,), regions=(region, table))


def numbers(places: Places, region: Region, codes: NDArray[np.int8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Bias, with the input's zero point in it, and multiplier of every output.

    Where the input's range is taken at run time, what its zero point and its scale are multiplied with.
    """
    assert region.weight is not None
    operand = region.operands[0]
    if is_ranged(operand):
        sums = codes.astype(np.int64).reshape(len(codes), -1).sum(1)
        return -sums.astype(np.int32), scale(places, region.weight).expand(len(codes)).numpy()
    bias = -zero_point(places, operand) * codes.astype(np.int64).reshape(len(codes), -1).sum(1)
    if region.bias is not None:
        bias = bias + places.tensor(arguments(region.bias)["q"]).numpy()
    steps = scale(places, operand) * scale(places, region.weight)
    if region.returns_codes:
        steps = steps / scale(places, region.result)
    return bias.astype(np.int32), steps.expand(len(codes)).numpy()


def reach(places: Places, region: Region, codes: NDArray[np.int8]) -> float:
    """How many steps a result may lie from zero, before it is saturated."""
    bias, multiplier = numbers(places, region, codes)
    sums = np.abs(codes.astype(np.float64)).reshape(len(codes), -1).sum(1) * 255 + np.abs(bias)
    own = float((sums * multiplier).max())
    if region.residual is None:
        return own
    return own + 255 * float(scale(places, region.residual) / scale(places, region.result))


def filled(vector: NDArray[Any], whole: Convolution, isa: Isa) -> NDArray[Any]:
    """A number per channel, and ones where registers hold channels that are not there."""
    outputs = len(vector) // whole.groups
    full = np.ones(-(-outputs // isa.lanes) * isa.lanes * whole.groups, vector.dtype)
    full[: len(vector)] = vector
    return full
