"""LUQ: powers of two in 4 bits, whose mean is the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.numerics import log_codes, measure_bias, noise_key, uniform

DRAWS, SIZE = 1000, 2048


@pytest.fixture(scope="module")
def gradient() -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1)).pow(3)  # much of it underflows


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return uniform(DRAWS * SIZE, noise_key(11), tensor=2, purpose=5).view(DRAWS, SIZE)


def test_there_are_fifteen_codes(gradient: Tensor, noise: Tensor) -> None:
    codes, scale = log_codes(gradient.expand(DRAWS, -1), noise)
    powers = [2**n for n in range(7)]
    assert sorted(set(codes.flatten().tolist())) == [*(-p for p in reversed(powers)), 0, *powers]
    assert scale == gradient.abs().max() / 64


def test_the_mean_is_the_gradient_and_the_error_that_of_the_formula(gradient: Tensor, noise: Tensor) -> None:
    codes, scale = log_codes(gradient.expand(DRAWS, -1), noise)
    found = measure_bias(codes * scale, gradient)
    assert found.z < 4
    assert found.bias == pytest.approx(found.floor, rel=0.05)
    t = (gradient / scale).abs().double()
    low = torch.where(t < 1, 0.0, 2 ** t.log2().floor())
    high = torch.where(t < 1, 1.0, 2 * low)
    variance = (t - low) * (high - t)
    assert found.error == pytest.approx(float((variance.sum() / t.square().sum()).sqrt()), rel=0.02)


def test_what_drops_small_gradients_is_rejected(gradient: Tensor, noise: Tensor) -> None:
    codes, scale = log_codes(gradient.expand(DRAWS, -1), noise)
    dropped = torch.where(gradient.abs() < scale, 0, codes) * scale
    assert measure_bias(dropped, gradient).z > 10


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
def test_powers_are_codes_themselves(u: float) -> None:
    g = torch.tensor([0.0, *(2.0**n for n in range(7)), *(-(2.0**n) for n in range(7))])
    for magnitude in (1.0, 2.0**-100, 2.0**100):
        codes, scale = log_codes(g * magnitude, torch.full_like(g, u))
        assert torch.equal(codes * scale, g * magnitude)


def test_zero_and_what_is_not_finite() -> None:
    codes, scale = log_codes(torch.zeros(8), torch.zeros(8))
    assert not (codes * scale).any()
    for poison in (torch.nan, torch.inf):
        codes, scale = log_codes(torch.tensor([1.0, poison]), torch.zeros(2))
        assert not (codes * scale).isfinite().any()
