"""The split between exponent and mantissa: learned with the weights, or the best one for a tensor."""

from collections.abc import Iterable

import torch
from torch import Tensor

from qcompiler.errors import RecipeError
from qcompiler.numerics.formats import parse_format
from qcompiler.numerics.granularity import PerTensor, reduce_range
from qcompiler.numerics.quantize import fake_quantize, params_from_range

SPLITS = ("e5m2", "e4m3", "e3m4", "e2m5", "int8")


def round_flexible(x: Tensor, mantissa: Tensor, clip: Tensor, bits: int = 8) -> Tensor:
    """Round to a minifloat whose mantissa bits and largest number are parameters (arXiv 2208.09225).

    M = rne(mantissa)    E = bits - 1 - M    b = 2^E - log2(c) + log2(2 - 2^-M) - 1    x' = clamp(x, -c, c)
    e = max(floor(log2|x'| + b), 1)          s = 2^(e - M - b)                           s rne(x' / s)

    M is 1 .. bits - 2; without any exponent bits c would not be a number of the format.

    Roundings pass gradients straight through and e is a constant, so that inside the clip d/dx = 1 and
    d/dc = (rounded - x) / c, and beyond it d/dx = 0 and d/dc = +-1. `mantissa` and `clip` broadcast against
    x: a clip per channel of a weight, per tensor of an activation. Computed in float64, returned as x is.
    """
    wide, c = x.to(torch.float64), clip.to(torch.float64)
    m = _straight(mantissa.to(torch.float64))
    if not bool(((m >= 1) & (m <= bits - 2)).all() & (c > 0).all()):
        raise RecipeError(
            "a learned format has left its range",
            fix=f"clamp the mantissa to 1 .. {bits - 2}, the clip above 0",
        )
    bias = 2 ** (bits - 1 - m) - torch.log2(c) + torch.log2(2 - 2**-m) - 1
    # 14.999999999999998 would put all powers of two into the binade below
    whole = (bias - bias.round()).abs() < 1e-9
    bias = torch.where(whole, _straight(bias), bias)
    clipped = torch.minimum(torch.maximum(wide, -c), c)
    exponent = (torch.log2(clipped.abs()) + bias).floor().clamp(min=1).detach()
    step = 2 ** (exponent - m - bias)
    return (step * _straight(clipped / step)).to(x.dtype)


def best_split(x: Tensor, formats: Iterable[str] = SPLITS) -> str:
    """The name of the format with the least mean squared error on x, scaled so that max|x| is its largest."""
    lo, hi = reduce_range(x, PerTensor())

    def error(name: str) -> float:
        params = params_from_range(lo, hi, parse_format(name), PerTensor(), scheme="symmetric")
        return float((fake_quantize(x, params).double() - x.double()).square().mean())

    return min(formats, key=error)


def _straight(x: Tensor) -> Tensor:
    """rne(x), with the gradient of x."""
    return x + (x.round() - x).detach()
