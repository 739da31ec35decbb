"""Operands of low-bit products: numbers on a grid, and scales that are constant along what is summed over.

    sum_k a_ik b_kj  ~  (sum_k p_ik q_kj) s_i t_j        a ~ s p, b ~ t q

A scale that varied along k could not leave the sum. Block formats rescale within it, and so are emulated:
their numbers come with their scales applied.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.errors import RecipeError
from qcompiler.numerics.blockscale import mx_scale, nvfp4_scale
from qcompiler.numerics.formats import parse_format
from qcompiler.numerics.fp8 import cast_fp8, largest
from qcompiler.numerics.granularity import Granularity, PerBlock, PerGroup, reduce_amax, spread
from qcompiler.numerics.minifloat import FloatFormat
from qcompiler.numerics.rounding import stochastic
from qcompiler.numerics.scaling import amax_scale


@dataclass(frozen=True, kw_only=True, eq=False)
class Operand:
    """values * scale ~ the tensor; `values` are int8 codes, or float32 numbers of a narrower format."""

    values: Tensor
    scale: Tensor


Axes = tuple[int, ...]
Maker = Callable[[Tensor, Axes, Tensor | None], Operand]
"""(x, the axes that are summed over, draws for stochastic rounding or None for the nearest) -> Operand"""


def integers(highest: int) -> Maker:
    """p = round(x / s) in -highest .. highest, s = amax / highest along the axes that are summed over.

    What is not finite has a scale of NaN, and so has every product that it enters.
    """

    def make(x: Tensor, axes: Axes, noise: Tensor | None) -> Operand:
        scale = amax_scale(magnitude(x, axes), highest)
        ratio = x.float() / scale
        codes = ratio.round_() if noise is None else stochastic(ratio, noise.view(x.shape))
        return Operand(values=codes.clamp_(-highest, highest).to(torch.int8), scale=scale)

    return make


def magnitude(x: Tensor, axes: Axes) -> Tensor:
    """max |x| along some axes, which stay with a length of 1.

    An axis apart from the others goes first: all at once, torch would walk through memory in small steps.
    """
    found = x.abs()
    if len(axes) > 1 and axes[0] + 1 < axes[1]:
        found = found.amax(axes[0], keepdim=True)
    return found.amax(axes, keepdim=True)


def eight_bit_floats(format: str, *, whole: bool = False, power_of_two: bool = False) -> Maker:
    """p = round(x / s) in an FP8 format, s = amax / max of the `whole` tensor or along each sum."""

    def make(x: Tensor, axes: Axes, noise: Tensor | None) -> Operand:
        amax = x.abs().amax() if whole else x.abs().amax(axes, keepdim=True)
        scale = amax_scale(amax, largest(format), power_of_two=power_of_two)
        return Operand(values=rounded(x.float() / scale, format, noise), scale=scale)

    return make


def blocks(scaled: Callable[[Tensor, bool], tuple[Tensor, Granularity]], format: str) -> Maker:
    """Numbers of a format with a scale for each block along the one axis that is summed over.

    scaled(x with that axis last, whether rounding is stochastic) -> scales and their granularity
    """

    def make(x: Tensor, axes: Axes, noise: Tensor | None) -> Operand:
        if len(axes) != 1:
            raise RecipeError(f"{format} in blocks along {len(axes)} axes", why="blocks lie along one")
        last = x.float().movedim(axes[0], -1)
        scale, granularity = scaled(last, noise is not None)
        steps = spread(scale, last.shape, granularity)
        draws = None if noise is None else noise.view(x.shape).movedim(axes[0], -1)
        values = rounded(last / steps, format, draws) * steps
        return Operand(values=values.movedim(-1, axes[0]), scale=torch.ones((), device=x.device))

    return make


def rounded(x: Tensor, format: str, noise: Tensor | None) -> Tensor:
    """The numbers of a format that x is rounded to, float32."""
    if noise is None and format in ("e4m3", "e5m2"):
        return cast_fp8(x, format).float()
    grid = parse_format(format)
    assert isinstance(grid, FloatFormat)
    return grid.round(x, None if noise is None else noise.view(x.shape))


def every(size: int, *, square: bool = False) -> Callable[[Tensor, bool], tuple[Tensor, Granularity]]:
    """E4M3 scales of 1 x size or size x size blocks, powers of two (TransformerEngine's block recipe)."""

    def scaled(x: Tensor, _: bool) -> tuple[Tensor, Granularity]:
        sides = (*[1] * (x.dim() - 2), size, size)
        granularity: Granularity = PerBlock(sizes=sides) if square else PerGroup(axis=-1, size=size)
        return amax_scale(reduce_amax(x, granularity), largest("e4m3"), power_of_two=True), granularity

    return scaled


def mx(x: Tensor, _: bool) -> tuple[Tensor, Granularity]:
    """MX: a power of two for each 32, rounded up so that nothing saturates."""
    granularity = PerGroup(axis=-1, size=32)
    return mx_scale(x, parse_format("e4m3"), granularity), granularity


def nv(x: Tensor, is_stochastic: bool) -> tuple[Tensor, Granularity]:
    """NVFP4: E4M3 for each 16, rounded up where the elements are rounded stochastically."""
    granularity = PerGroup(axis=-1, size=16)
    return nvfp4_scale(x, granularity, rounding="up" if is_stochastic else "nearest").scale, granularity


OPERANDS: Mapping[str, Maker] = {
    "int8": integers(127),
    "int4": integers(7),
    "e4m3": eight_bit_floats("e4m3", power_of_two=True),
    "e4m3-tensor": eight_bit_floats("e4m3", whole=True),
    "e5m2-tensor": eight_bit_floats("e5m2", whole=True),
    "e4m3-128": blocks(every(128), "e4m3"),
    "e4m3-128x128": blocks(every(128, square=True), "e4m3"),
    "mxfp8": blocks(mx, "e4m3"),
    "nvfp4": blocks(nv, "e2m1"),
}
"""The formats of operands by name."""
IN_BLOCKS = frozenset({"e4m3-128", "e4m3-128x128", "mxfp8", "nvfp4"})  # which want one axis to sum over
WHOLE: Mapping[str, str] = {"e4m3-tensor": "e4m3", "e5m2-tensor": "e5m2"}
"""Those with one scale for all, and the format of their numbers."""


def operand(
    format: str, x: Tensor, axes: Axes, noise: Tensor | None = None, scale: Tensor | None = None
) -> Operand:
    """An operand in a format, with a given scale where the whole has one: what exceeds it saturates."""
    if scale is None:
        return OPERANDS[format](x, axes, noise)
    return Operand(values=rounded(x.float() / scale, WHOLE[format], noise), scale=scale)
