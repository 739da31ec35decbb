"""Fake quantization that can be trained through: the bits of `fake_quantize`, and gradients for x and s.

    F(x) = s (q(x / s) - z)     v = x / s     inside: qmin - z <= v <= qmax - z   (minifloats: |v| <= max)

    straight through    dF/dx = [inside]                              arXiv 1308.3432, clipped
    learned step        dF/ds = (q(v) - z) - [inside] v               LSQ, arXiv 1902.08153, equation 3
    clipped at a        dF/da = [x >= a],  dF/dx = [0 <= x < a]       PACT, arXiv 1805.06085, equation 3

The bounds are looked at before rounding. A NaN passes no gradient.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qcompiler.numerics.formats import Format
from qcompiler.numerics.granularity import spread
from qcompiler.numerics.integer import IntFormat
from qcompiler.numerics.minifloat import FloatFormat
from qcompiler.numerics.quantize import QuantParams, dequantize, fake_quantize, quantize


def pass_through(x: Tensor, y: Tensor) -> Tensor:
    """y, with the gradient going to x as if it were x itself."""
    result: Tensor = _Passed.apply(x, y)  # type: ignore[no-untyped-call]  # of torch
    return result


def quantize_through(x: Tensor, params: QuantParams) -> Tensor:
    """F(x); gradient for x alone."""
    result: Tensor = _Stepped.apply(x, None, params, 0.0)  # type: ignore[no-untyped-call]  # of torch
    return result


def quantize_learned(x: Tensor, scale: Tensor, params: QuantParams, gain: float = 1.0) -> Tensor:
    """F(x); gradients for x and, times `gain`, for `scale`, of which `params.scale` holds the values."""
    steps = spread(scale, x.shape, params.granularity)  # whose own gradient sums over what shares a step
    result: Tensor = _Stepped.apply(x, steps, params, gain)  # type: ignore[no-untyped-call]  # of torch
    return result


def quantize_clipped(x: Tensor, bound: Tensor, params: QuantParams) -> Tensor:
    """F(x) of values above 0, whose highest code is at `bound`; gradients for x and `bound`, both ()."""
    result: Tensor = _Clipped.apply(x, bound, params)  # type: ignore[no-untyped-call]  # of torch
    return result


def step_gain(format: Format, zero_point: int, count: int) -> float:
    """g = 1 / sqrt(n Q), Q the code furthest from zero; LSQ, section 2.2."""
    if isinstance(format, FloatFormat):
        return 1 / math.sqrt(count * format.max)
    return 1 / math.sqrt(count * max(format.qmax - zero_point, zero_point - format.qmin))


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


class _Stepped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: Tensor | None, params: QuantParams, gain: float) -> Tensor:
        ctx.params, ctx.gain = params, gain
        codes = quantize(x, params)
        ctx.save_for_backward(x, codes)
        return dequantize(codes, params)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, codes = ctx.saved_tensors
        params: QuantParams = ctx.params
        zero = spread(params.zero_point, x.shape, params.granularity)
        ratio = x.to(torch.float32) / spread(params.scale, x.shape, params.granularity)
        inside = within(ratio, zero, params.format)
        passed = gradients[0].masked_fill(~inside, 0).to(x.dtype)
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None
        format = params.format
        reached = codes.float() - zero if isinstance(format, IntFormat) else format.decode(codes)
        stepped = gradients[0] * (reached - ratio.masked_fill(~inside, 0)) * ctx.gain
        return passed, stepped, None, None


def within(ratio: Tensor, zero: Tensor, format: Format) -> Tensor:
    """Whether x / s lies between the lowest and the highest code."""
    if isinstance(format, FloatFormat):
        return ratio.abs() <= format.max
    return (ratio >= format.qmin - zero) & (ratio <= format.qmax - zero)


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor, params: QuantParams) -> Tensor:
        ctx.save_for_backward(x, bound)
        return fake_quantize(x, params)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, bound = ctx.saved_tensors
        above = x >= bound
        passed = gradients[0].masked_fill(~(x >= 0) | above, 0)
        return passed.to(x.dtype), gradients[0].masked_fill(~above, 0).sum().to(bound.dtype), None
