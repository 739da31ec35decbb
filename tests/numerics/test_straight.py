"""Fake quantization that is trained through: its bits, and its gradients against finite differences.

What is differentiated is the surrogate that a straight-through estimator stands for: rounding adds to v what
it adds at this point, and nothing changes that; v is clamped to the range of the codes.

    y(x, s) = s (clamp(v, lo, hi) + c)        v = x / s,  c = rne(v0) - v0 inside, 0 outside, held fixed
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qcompiler.numerics import (
    Granularity,
    IntFormat,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantParams,
    fake_quantize,
    parse_format,
    pass_through,
    quantize_clipped,
    quantize_learned,
    quantize_through,
    spread,
    step_gain,
)

STEP = 1e-6  # of the differences, in float64: their error is below 1e-8 of the values here


def made(format: str, scale: Tensor, zero: int, granularity: Granularity) -> QuantParams:
    return QuantParams(
        scale=scale, zero_point=torch.full_like(scale, zero, dtype=torch.int32),
        format=parse_format(format), granularity=granularity,
    )  # fmt: skip


def integers(params: QuantParams) -> IntFormat:
    assert isinstance(params.format, IntFormat)
    return params.format


CASES = [
    ("uint8", 0, PerTensor(), ()),
    ("uint4", 5, PerTensor(), ()),
    ("int4", 0, PerChannel(axis=0), (6,)),
    ("int2", 0, PerGroup(axis=1, size=8), (6, 4)),
]


def surrogate(x: Tensor, scale: Tensor, params: QuantParams) -> Callable[[Tensor, Tensor], Tensor]:
    """y(x, s) of the module's docstring in float64, with c taken at the given point."""
    format, zero = integers(params), spread(params.zero_point, x.shape, params.granularity).double()
    lo, hi = format.qmin - zero, format.qmax - zero
    at = x.double() / spread(scale, x.shape, params.granularity).double()
    held = torch.where((at >= lo) & (at <= hi), at.round() - at, 0)

    def y(x: Tensor, scale: Tensor) -> Tensor:
        s = spread(scale, x.shape, params.granularity)
        return s * (torch.clamp(x / s, lo, hi) + held)

    return y


@pytest.mark.parametrize(("format", "zero", "granularity", "shape"), CASES)
def test_gradients_are_the_finite_differences_of_the_surrogate(
    format: str, zero: int, granularity: Granularity, shape: tuple[int, ...]
) -> None:
    scale = (torch.rand(shape) + 0.5).requires_grad_()
    params = made(format, scale.detach(), zero, granularity)
    x = (torch.randn(6, 32) * 0.6 * (integers(params).qmax - zero)).requires_grad_()
    gradient = torch.randn(6, 32)
    y = surrogate(x.detach(), scale.detach(), params)
    result = quantize_learned(x, scale, params, gain=0.5)
    assert torch.equal(result, fake_quantize(x.detach(), params))
    for_x, for_scale = torch.autograd.grad(result, (x, scale), gradient)

    at, s, g = x.detach().double(), scale.detach().double(), gradient.double()
    wanted = g * (y(at + STEP, s) - y(at - STEP, s)) / (2 * STEP)
    torch.testing.assert_close(for_x.double(), wanted, rtol=1e-6, atol=1e-6)
    assert (for_x == 0).any() and (for_x != 0).any()
    (through,) = torch.autograd.grad(quantize_through(x, params), x, gradient)
    assert torch.equal(through, for_x)

    for place in range(s.numel()):
        nudge = torch.zeros_like(s).reshape(-1)
        nudge[place] = STEP
        nudge = nudge.reshape(s.shape)
        found = 0.5 * (g * (y(at, s + nudge) - y(at, s - nudge))).sum() / (2 * STEP)
        assert for_scale.reshape(-1)[place].item() == pytest.approx(found.item(), rel=1e-4, abs=1e-4)


def test_the_gradients_of_a_clip_are_those_of_its_equations() -> None:
    """y = clip(x, 0, a) and not its rounding; a bound below some values, and above others."""
    bound = torch.tensor(1.7, requires_grad=True)
    params = made("uint2", bound.detach() / 3, 0, PerTensor())
    x = (torch.randn(400) * 2).requires_grad_()
    gradient = torch.randn(400)
    result = quantize_clipped(x, bound, params)
    assert torch.equal(result, fake_quantize(x.detach(), params))
    for_x, for_bound = torch.autograd.grad(result, (x, bound), gradient)

    at, a, g = x.detach().double(), bound.detach().double(), gradient.double()
    by_x = (torch.clamp(at + STEP, 0 * a, a) - torch.clamp(at - STEP, 0 * a, a)) / (2 * STEP)
    torch.testing.assert_close(for_x.double(), g * by_x, rtol=1e-6, atol=1e-6)
    by_bound = (torch.minimum(at.clamp(min=0), a + STEP) - torch.minimum(at.clamp(min=0), a - STEP)) / (
        2 * STEP
    )
    assert for_bound.item() == pytest.approx((g * by_bound).sum().item(), rel=1e-5)


def test_bounds_pass_a_gradient_and_what_is_beyond_or_no_number_does_not() -> None:
    params = made("int4", torch.tensor(0.5), 0, PerTensor())
    x = torch.tensor([3.5, -4.0, 3.6, -4.1, torch.nan, torch.inf], requires_grad=True)
    (found,) = torch.autograd.grad(quantize_through(x, params).nansum(), x)
    assert found.tolist() == [1, 1, 0, 0, 0, 0]


def test_a_minifloat_learns_its_step_too() -> None:
    """Inside, F(x) / s - x / s; beyond, the largest value."""
    scale = torch.tensor(0.25, requires_grad=True)
    params = made("e4m3", scale.detach(), 0, PerTensor())
    x = torch.tensor([1.03, -7.7, 300.0, -500.0])
    (found,) = torch.autograd.grad(quantize_learned(x, scale, params).sum(), scale)
    inside = (fake_quantize(x, params) - x)[:2] / 0.25
    assert found.item() == pytest.approx(inside.sum().item() + 448 - 448, abs=1e-5)


def test_what_passes_through_has_the_value_of_one_and_the_gradient_of_the_other() -> None:
    x, y = torch.randn(5, requires_grad=True), torch.randn(5)
    result = pass_through(x, y)
    assert torch.equal(result, y)
    assert torch.equal(torch.autograd.grad(result, x, torch.arange(5.0))[0], torch.arange(5.0))


def test_the_gain_of_a_step_counts_its_elements_and_codes() -> None:
    assert step_gain(parse_format("uint4"), 0, 100) == 1 / math.sqrt(1500)
    assert step_gain(parse_format("uint4"), 5, 100) == 1 / math.sqrt(1000)
    assert step_gain(parse_format("int8"), 0, 4) == 1 / math.sqrt(4 * 128)
