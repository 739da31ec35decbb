"""FP8 for training: casts with a policy for infinities, and tensors with their scales (arXiv 2209.05433)."""

from typing import Literal, get_args

import torch
from torch import Tensor

from qcompiler.errors import RecipeError
from qcompiler.numerics.formats import parse_format
from qcompiler.numerics.granularity import Granularity, PerBlock, PerGroup, PerTensor, reduce_amax, spread
from qcompiler.numerics.minifloat import FloatFormat
from qcompiler.numerics.scaling import amax_scale

Infinity = Literal["nan", "saturate"]

FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
"""The formats that torch stores, by name; their codes are those of `parse_format`."""

ROW_BLOCK = PerGroup(axis=-1, size=128)
SQUARE_BLOCK = PerBlock(sizes=(128, 128))


def cast_fp8(x: Tensor, format: str, infinity: Infinity = "nan") -> Tensor:
    """The nearest numbers of the format, ties to even, of torch's type; finite numbers saturate.

    x  -->  rne(clamp(x, +-max))        NaN  -->  NaN
    +-inf  -->  NaN ("nan": an overflow stays visible) or +-max ("saturate")

    The clamp comes first, in float32: what torch's own cast does beyond the maximum differs between its
    versions, devices and both formats. Within it the cast rounds right everywhere.
    """
    if format not in FP8 or infinity not in get_args(Infinity):
        raise RecipeError(
            f'no cast to "{format}" with infinity "{infinity}"',
            fix=f"use {' or '.join(FP8)} and {' or '.join(get_args(Infinity))}",
        )
    wide, highest = x.to(torch.float32), largest(format)
    if infinity == "nan":
        wide = wide.nan_to_num(nan=torch.nan, posinf=torch.nan, neginf=torch.nan)
    return wide.clamp(-highest, highest).to(FP8[format])


def to_fp8(
    x: Tensor,
    format: str,
    granularity: Granularity = PerTensor(),  # noqa: B008  a value that nobody can change
    *,
    power_of_two: bool = False,
) -> tuple[Tensor, Tensor]:
    """Codes of torch's type, and the scales of this tensor itself (current scaling).

    s = max|x| / max, by granularity        q = cast(x / s)        x ~ q s

    A NaN or an infinity in x makes its scale NaN, and with it all that the scale is for.
    """
    scale = amax_scale(reduce_amax(x, granularity), largest(format), power_of_two=power_of_two)
    return cast_fp8(x.to(torch.float32) / spread(scale, x.shape, granularity), format), scale


def from_fp8(
    codes: Tensor,
    scale: Tensor,
    granularity: Granularity = PerTensor(),  # noqa: B008
) -> Tensor:
    """q s, float32."""
    return codes.to(torch.float32) * spread(scale, codes.shape, granularity)


def largest(format: str) -> float:
    """448 for E4M3, 57344 for E5M2."""
    found = parse_format(format)
    assert isinstance(found, FloatFormat)
    return found.max
