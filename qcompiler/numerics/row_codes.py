"""Rows of floats as codes of 8 bits, each row with a scale of its own.

s = max |x| / L        q = clamp(rne(x / s), -L, L)        x ~ q s        L = 127, 448 or 57344
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qcompiler.numerics.formats import parse_format
from qcompiler.numerics.fp8 import cast_fp8
from qcompiler.numerics.minifloat import FloatFormat
from qcompiler.numerics.rounding import stochastic

CODES: Mapping[str, tuple[torch.dtype, float]] = {
    "int8": (torch.int8, 127.0),
    "e4m3": (torch.float8_e4m3fn, 448.0),
    "e5m2": (torch.float8_e5m2, 57344.0),
}
"""How codes of a format are held, and the largest."""


def row_codes(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """[..., K]  -->  codes [..., K] and scales float32 [...].

    Divisions are those of float32. A row of zeros has scale 1; one with NaN or an infinity has scale NaN and
    codes 0, so that what it is multiplied into is NaN and no other row is. No scale is below 2^-126.
    """
    scale = scale_of(x.float(), format)
    return codes_of(x.float(), scale, format), scale


def scale_of(x: Tensor, format: str) -> Tensor:
    """Of each row of x [..., K] in float32: [...]."""
    amax = x.abs().amax(-1)
    largest = amax.new_full((), CODES[format][1])  # on CUDA, torch divides by a number in another way
    scale = (amax / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return scale.masked_fill(amax == 0, 1.0).masked_fill(~amax.isfinite(), torch.nan)


def codes_of(x: Tensor, scale: Tensor, format: str, noise: Tensor | None = None) -> Tensor:
    """Of x [..., K] in float32 with scales [...], zeros where a scale is NaN.

    With noise from [0, 1), of x's shape, they are drawn, and their mean is x.
    """
    kind, largest = CODES[format]
    ratio = (x / scale[..., None]).masked_fill(scale.isnan()[..., None], 0.0).clamp(-largest, largest)
    if noise is not None:
        grid = parse_format(format)
        ratio = grid.round(ratio, noise) if isinstance(grid, FloatFormat) else stochastic(ratio, noise)
    return ratio.round().to(kind) if format == "int8" else cast_fp8(ratio, format)
