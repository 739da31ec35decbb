"""Bit splitting: it never clips, its mean is the gradient, and that of the published code is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.numerics import BitSplit, measure_bias, noise_key, split_bits, uniform


def draws(count: int, step: int = 0) -> Tensor:
    return uniform(count, noise_key(11, step), tensor=2, purpose=5)


def test_the_sum_of_both_is_within_one_lower_step() -> None:
    g = torch.randn(64, 32) * 1e-3
    split = split_bits(g, draws(g.numel()))
    assert split.upper.dtype == split.lower.dtype == torch.int8
    assert split.scale.item() == pytest.approx(g.abs().max().item() / 105)
    assert bool(((split.value - g).abs() <= split.scale * (1 + 1e-5)).all())
    stacked = split.rows.float() * split.factors[:, None]
    assert torch.allclose(stacked[:64] + stacked[64:], split.value)


def test_codes_never_leave_four_bits() -> None:
    # a million normal numbers; and float32 numbers on and around every tie and both ends
    for step in range(5):
        g = torch.randn(200_000, generator=torch.Generator().manual_seed(step))
        assert codes_fit(split_bits(g, draws(g.numel(), step)))
    ties = torch.arange(-105.0, 106.0, 7.0)
    near = torch.stack([torch.nextafter(ties, torch.full_like(ties, end)) for end in (-1e9, 1e9)])
    t = torch.cat((ties, near.flatten(), torch.tensor([105.0])))
    t = t[t.abs() <= 105]
    for u in (0.0, 0.5, 1 - 2**-24):
        split = split_bits(t, torch.full_like(t, u))
        assert split.scale == 1
        assert codes_fit(split)
        assert bool(((split.value - t).abs() <= 1).all())


def codes_fit(split: BitSplit) -> bool:
    return bool((split.upper.abs() <= 7).all() and (split.lower.abs() <= 7).all())


@pytest.fixture(scope="module")
def gradient() -> Tensor:
    return torch.randn(4096, generator=torch.Generator().manual_seed(1))


def test_the_mean_of_draws_is_the_gradient(gradient: Tensor) -> None:
    many = split_bits(gradient.expand(1000, -1), draws(1000 * 4096)).value
    found = measure_bias(many, gradient)
    # a standard normal number: above 4 once in 30,000 such tests
    assert found.z < 4
    assert found.bias == pytest.approx(found.floor, rel=0.05)
    # a step is max / 105, its noise a sixth of its square where fractions are uniform
    theory = gradient.abs().max() / 105 / 6**0.5 / gradient.square().mean().sqrt()
    assert found.error == pytest.approx(theory.item(), rel=0.02)


def published(g: Tensor, noise: Tensor) -> Tensor:
    """The authors' code: steps of max / 98, and both parts clamped to +-6, so that it ends at 90 / 98."""
    scale = g.abs().max() / 98
    t = g / scale
    upper = (t / 14).clamp(-6, 6).round()
    lower = (t - 14 * upper + noise - 0.5).clamp(-6, 6).round()
    return (14 * upper + lower) * scale


def test_the_published_code_is_rejected(gradient: Tensor) -> None:
    noise = draws(1000 * 4096).view(1000, 4096)
    many = published(gradient.expand(1000, -1), noise)
    found = measure_bias(many, gradient)
    assert found.z > 10
    assert found.bias > 10 * found.floor
    largest = gradient.abs().argmax()
    assert (many[:, largest].mean() / gradient[largest]).item() == pytest.approx(1 - 0.0816, abs=1e-4)


@pytest.mark.parametrize("magnitude", [0.0, 1e-44, 1e-38, 1e30])
def test_no_magnitude_is_special(magnitude: float) -> None:
    g = torch.linspace(-1, 1, 100) * magnitude
    split = split_bits(g, torch.full((100,), 0.5))
    assert codes_fit(split)
    assert bool(((split.value - g).abs() <= split.scale).all())
    assert magnitude or not split.value.any()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_visible(poison: float) -> None:
    g = torch.randn(100)
    g[3] = poison
    assert not split_bits(g, torch.rand(100)).value.isfinite().any()
