"""The test for bias: normal without one, large with one, in whatever direction."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import InputError
from qcompiler.numerics import measure_bias


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_without_bias_z_is_standard_normal(size: int) -> None:
    exact = torch.randn(size)
    z = torch.tensor(
        [measure_bias(exact + torch.rand(200, size).sub_(0.5), exact).z for _ in range(200)],
        dtype=torch.float64,
    )
    # 200 standard normal numbers: four standard deviations of their mean and of their variance
    assert abs(z.mean().item()) < 4 / 200**0.5
    assert abs(z.var().item() - 1) < 4 * (2 / 200) ** 0.5


@pytest.mark.parametrize("pattern", ["one", "all", "alternating"])
def test_a_bias_at_the_size_of_the_floor_is_found(pattern: str) -> None:
    size, count = 500, 1000
    exact = torch.randn(size)
    bias = torch.zeros(size)
    bias[0] = 1
    if pattern != "one":
        bias = torch.ones(size) if pattern == "all" else torch.ones(size).cumsum(0) % 2 - 0.5
    noise = torch.rand(count, size) - 0.5
    bias *= noise.norm() / count / bias.norm()
    found = measure_bias(exact + noise + bias, exact)
    assert found.z > 6
    assert found.bias == pytest.approx(2**0.5 * found.floor, rel=0.1)


def test_figures_are_those_of_the_definition() -> None:
    exact, draws = torch.tensor([3.0, 4.0]), torch.tensor([[3.0, 5.0], [3.0, 4.0], [5.0, 4.0]])
    found = measure_bias(draws, exact)
    assert found.count == 3
    assert found.error == pytest.approx((5 / 3) ** 0.5 / 5)
    assert found.floor == pytest.approx(found.error / 3**0.5)
    assert found.bias == pytest.approx(5**0.5 / 3 / 5)


def test_no_draws_are_refused() -> None:
    with pytest.raises(InputError):
        measure_bias([], torch.ones(2))
