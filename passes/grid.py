"""Weights that lie on a grid already: their steps are read back from the values, so nothing else is kept.

    W[i] = s (q[i] - z)        s of at most 16 significant bits, |q - z| < 2^8: exact in float32
    s    = reach / c           reach = max|W| (signed codes) or max W - min W, c the largest that fits

Any s that reproduces every value of its group bit for bit is as good as the one that made them.
"""

from dataclasses import replace

import torch
from torch import Tensor

from qcompiler.errors import PlanError
from qcompiler.numerics import (
    Granularity,
    IntFormat,
    QuantParams,
    dequantize,
    quantize,
    reduce_range,
)
from qcompiler.passes.groups import groups_of

SIGNIFICANT = 16  # bits of a step; with 8 of a code they fill float32's 24


def short(scale: Tensor) -> Tensor:
    """The nearest step of 16 significant bits: relative error at most 2^-16, multiples exact."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.round(torch.ldexp(mantissa, torch.tensor(SIGNIFICANT))), exponent - SIGNIFICANT)


def shortened(params: QuantParams) -> QuantParams:
    return replace(params, scale=short(params.scale))


def read_grid(tensor: Tensor, format: IntFormat, granularity: Granularity) -> QuantParams:
    """Parameters with D(Q(W)) = W, bit for bit; raises PlanError where there are none.

    Signed formats have z = 0; unsigned ones a zero point per scale.
    """
    lo, hi = reduce_range(tensor, granularity)
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    reach = torch.maximum(-lo, hi) if format.signed else hi - lo
    most = format.qmax if format.signed else format.qmax - format.qmin
    found = reach == 0
    scale = torch.ones_like(reach)
    zero = torch.full_like(reach, 0 if format.signed else (format.qmax + 1) // 2)
    for steps in range(most, 0, -1):
        if bool(found.all()):
            break
        tried = torch.where(found, 1.0, reach / steps)
        offset = torch.zeros_like(tried) if format.signed else torch.round(-lo / tried) + format.qmin
        offset = offset.clamp(format.qmin, format.qmax)
        fits = ~found & reproduced(tensor, made(tried, offset, format, granularity))
        scale, zero = torch.where(fits, tried, scale), torch.where(fits, offset, zero)
        found = found | fits
    if not bool(found.all()):
        raise PlanError(
            f"{int((~found).sum())} groups of a weight are not on a grid of {format}",
            why="the plan says that they were rounded already",
            fix="plan and round again for this graph",
        )
    return made(scale, zero, format, granularity)


def made(scale: Tensor, zero: Tensor, format: IntFormat, granularity: Granularity) -> QuantParams:
    narrow = replace(format, restricted=format.signed)
    return QuantParams(scale=scale, zero_point=zero.to(torch.int32), format=narrow, granularity=granularity)


def reproduced(tensor: Tensor, params: QuantParams) -> Tensor:
    """Whether all values of a scale come back as they were, in the shape of the scales."""
    return groups_of(dequantize(quantize(tensor, params), params) == tensor, params).all(-1)
