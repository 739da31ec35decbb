"""Rows of floats as codes of 8 bits, each row with a scale of its own.

s = max |x| / L        q = clamp(rne(x / s), -L, L)        x ~ q s        L = 127, 448 or 57344
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qcompiler.numerics.fp8 import cast_fp8

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
    kind, largest = CODES[format]
    wide = x.float()
    amax = wide.abs().amax(-1)
    scale = (amax / largest).clamp(min=torch.finfo(torch.float32).tiny).masked_fill(amax == 0, 1.0)
    scale = scale.masked_fill(~amax.isfinite(), torch.nan)
    ratio = (wide / scale[..., None]).masked_fill(~amax.isfinite()[..., None], 0.0)
    if format == "int8":
        return ratio.round().clamp(-largest, largest).to(kind), scale
    return cast_fp8(ratio, format), scale
