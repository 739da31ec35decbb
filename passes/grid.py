"""Weights that lie on a grid already: their steps are read back from the values, so nothing else is kept.

    W[i] = s (q[i] - z)          in float32: s of at most 16 significant bits, |q - z| < 2^8: exact
    W[i] = rne(s (q[i] - z))     in bfloat16 and float16: s of at most 8, |q - z| < 2^7
    s    = reach / c             reach = max|W| (signed codes) or max W - min W, c the largest that fits

In float32 any s that reproduces every value of its group bit for bit is as good as the one that made them.
In halves two of them may round to the same values, and their s (q - z) then differ by an ulp at most.

There W[i] = s (q[i] - z) (1 + d) with |d| < 2^-8. That is off by less than half a step, so codes come
back; and |s - reach / c| < 2^-8 s is less than a unit of 8 bits, so s is one of the two numbers around
reach / c. Kernels multiply codes and never meet the rounded values: what counts is what is read back. Where
values of float16 are subnormal |d| is larger, and beyond 65504 they are infinite: such a group may have no s.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from qcompiler.errors import PlanError
from qcompiler.numerics import (
    Granularity,
    IntFormat,
    PerChannel,
    QuantParams,
    dequantize,
    quantize,
    reduce_range,
)

# The type of the scales of a weight, and the bits of a step in it: with 8 of a code 16 fill float32's 24.
HELD: Mapping[torch.dtype, str] = {
    torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "bfloat16",
}  # fmt: skip
SIGNIFICANT: Mapping[str, int] = {"float32": 16, "bfloat16": 8}
# Where the step is that has made a reach, in units beside reach / c.
AROUND: Mapping[str, tuple[int, ...]] = {"float32": (0,), "bfloat16": (0, -1, 1)}


def short(scale: Tensor, bits: int = SIGNIFICANT["float32"]) -> Tensor:
    """The nearest step of so many significant bits: relative error at most 2^-bits."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.round(torch.ldexp(mantissa, torch.tensor(bits))), exponent - bits)


def shortened(params: QuantParams, scales: str = "float32") -> QuantParams:
    return replace(params, scale=short(params.scale, SIGNIFICANT[scales]))


def read_grid(tensor: Tensor, format: IntFormat, granularity: Granularity) -> QuantParams:
    """Parameters with D(Q(W)) = W, bit for bit in the type of W; raises PlanError where there are none.

    Signed formats have z = 0; unsigned ones a zero point per scale.
    """
    params, found = find_grid(tensor, format, granularity)
    if not bool(found.all()):
        raise PlanError(
            f"{int((~found).sum())} groups of a weight are not on a grid of {format}",
            why="the plan says that they were rounded already",
            fix="plan and round again for this graph",
        )
    return params


def find_grid(tensor: Tensor, format: IntFormat, granularity: Granularity) -> tuple[QuantParams, Tensor]:
    """The parameters of every group that lies on a grid, and which do; others have a step of 1.

    The groups of a weight [out, in, ...] follow one another in memory.
    """
    lo, hi = (end.float() for end in reduce_range(tensor, granularity))
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    reach = torch.maximum(-lo, hi) if format.signed else hi - lo
    shape, lo, reach = reach.shape, lo.flatten(), reach.flatten()
    groups = tensor.reshape(len(reach), -1)
    most = format.qmax if format.signed else format.qmax - format.qmin
    found = reach == 0
    scale = torch.ones_like(reach)
    zero = torch.full_like(reach, 0 if format.signed else (format.qmax + 1) // 2)
    left = (~found & reach.isfinite()).nonzero().squeeze(1)
    scales = HELD[tensor.dtype]
    for steps, place in product(range(most, 0, -1), AROUND[scales]):
        if not len(left):
            break
        tried = beside(reach[left] / steps, place, SIGNIFICANT[scales])
        offset = torch.zeros_like(tried) if format.signed else torch.round(-lo[left] / tried) + format.qmin
        offset = offset.clamp(format.qmin, format.qmax)
        fits = reproduced(groups[left], made(tried, offset, format, PerChannel(axis=0)))
        at = left[fits]
        scale[at], zero[at], found[at] = tried[fits], offset[fits], True
        left = left[~fits]
    return made(scale.reshape(shape), zero.reshape(shape), format, granularity), found.reshape(shape)


def beside(scale: Tensor, place: int, bits: int) -> Tensor:
    """The nearest step of so many bits, or one that is so many of its units away; a normal number."""
    _, exponent = torch.frexp(scale)
    moved = short(scale, bits) + place * torch.ldexp(torch.ones_like(scale), exponent - bits)
    return moved.clamp(min=torch.finfo(scale.dtype).tiny)


def made(scale: Tensor, zero: Tensor, format: IntFormat, granularity: Granularity) -> QuantParams:
    narrow = replace(format, restricted=format.signed)
    return QuantParams(scale=scale, zero_point=zero.to(torch.int32), format=narrow, granularity=granularity)


def reproduced(groups: Tensor, params: QuantParams) -> Tensor:
    """Which rows come back as they were, in their type."""
    return (dequantize(quantize(groups, params), params).to(groups.dtype) == groups).all(-1)
