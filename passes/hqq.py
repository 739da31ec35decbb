"""HQQ: scale and zero point of every group by half-quadratic splitting, from the weight alone.

    min over s, z of  sum |W - s (q - z)|^p        q = sat(rne(W / s) + z), p < 1: few large errors are cheap

    E = shrink(W / s - (q - z)),    shrink(x) = sign(x) max(|x| - |x|^(p - 1) / beta, 0)
    z = mean(q - (W / s - E))       where the format has zero points, rounded to a code
    s = <q - z, W - s E> / <q - z, q - z>

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023), which moves z alone;
codes here have whole zero points, and signed ones none, so s moves too. Errors are in steps, beta unitless.
"""

from dataclasses import replace

import torch
from torch import Tensor

from qcompiler.numerics import IntFormat, QuantParams, dequantize, quantize
from qcompiler.passes.groups import groups_of, summed
from qcompiler.passes.weights import chosen

NORM = 0.7
BETA, GROWTH, ROUNDS = 10.0, 1.05, 20  # the penalty of the splitting, and how it tightens


def half_quadratic(weight: Tensor, start: QuantParams) -> QuantParams:
    """The best parameters seen for every scale, in the p-norm; never worse in it than `start`."""
    best, least = start, loss(weight, start)
    params, beta = start, BETA
    for _ in range(ROUNDS):
        params = step(weight, params, beta)
        found = loss(weight, params)
        best = chosen(found < least, params, best)
        least, beta = torch.minimum(found, least), beta * GROWTH
    return best


def step(weight: Tensor, params: QuantParams, beta: float) -> QuantParams:
    """One round: split off the large errors, then fit z and s to what is left."""
    format = params.format
    assert isinstance(format, IntFormat)
    scale, zero = params.scale[..., None], params.zero_point[..., None].float()
    steps = groups_of(weight, params) / scale
    codes = groups_of(quantize(weight, params).float(), params)
    left = steps - shrink(steps - (codes - zero), beta)
    if not format.signed:
        zero = (codes - left).mean(-1, keepdim=True).round().clamp(format.qmin, format.qmax)
    centred = codes - zero
    power = centred.square().sum(-1)
    ratio = (centred * left).sum(-1) / power.clamp(min=1)
    moved = torch.where((power > 0) & (ratio > 0.5) & (ratio < 2), ratio, 1.0) * params.scale
    return replace(params, scale=moved, zero_point=zero.squeeze(-1).to(torch.int32))


def shrink(x: Tensor, beta: float) -> Tensor:
    """The generalised soft threshold of |x|^p."""
    size = x.abs().clamp(min=1e-8)
    return x.sign() * (size - size ** (NORM - 1) / beta).clamp(min=0)


def loss(weight: Tensor, params: QuantParams) -> Tensor:
    """Sum of |error|^p under every scale."""
    return summed((weight - dequantize(quantize(weight, params), params)).abs() ** NORM, params)
