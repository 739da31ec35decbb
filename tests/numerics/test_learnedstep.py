"""The learned step: its codes, what passes through, and its gradient against autograd."""

from __future__ import annotations

import pytest
import torch

from qcompiler.numerics import mean_step, step_codes, step_gradient, within_step


@pytest.mark.parametrize(("bits", "highest"), [(4, 7), (8, 127)])
def test_codes_are_symmetric_and_those_within_pass(bits: int, highest: int) -> None:
    step = torch.tensor(0.5)
    x = torch.tensor([0.0, 0.25, 0.75, -0.75, highest / 2, highest / 2 + 0.01, -1e9, torch.inf, torch.nan])
    codes = step_codes(x, step, bits)
    assert codes.dtype == torch.int8
    assert codes.tolist() == [0, 0, 2, -2, highest, highest, -highest, highest, 0]
    assert within_step(x, step, bits).tolist() == [True] * 5 + [False] * 4


def test_the_first_step_follows_the_mean_and_survives_zeros() -> None:
    x = torch.tensor([1.0, -3.0], dtype=torch.bfloat16)
    assert mean_step(x).item() == pytest.approx(4 / 7**0.5)
    zeros = torch.zeros(4)
    assert not step_codes(zeros, mean_step(zeros)).any()


def test_the_gradient_is_that_of_straight_through_rounding() -> None:
    x, gradient = torch.randn(1000) * 3, torch.randn(1000)
    step = torch.tensor(0.4, requires_grad=True)
    ratio = (x / step).clamp(-7, 7)
    rounded = ratio + (ratio.round() - ratio).detach()
    (wanted,) = torch.autograd.grad(rounded * step, step, gradient)
    found = step_gradient(gradient, x, step.detach())
    assert found.item() == pytest.approx(wanted.item() / (7 * 1000) ** 0.5, rel=1e-4)
