"""Rounding modes: the table of ties, exactness between ties, and the statistics of stochastic rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import RecipeError
from qcompiler.numerics import ROUNDINGS, noise_key, round_by, stochastic, uniform

TIES = [-1.5, -0.5, 0.5, 1.5, 2.5]
TABLE = {
    "half_even": [-2, 0, 0, 2, 2],
    "half_up": [-1, 0, 1, 2, 3],
    "half_down": [-2, -1, 0, 1, 2],
    "half_toward_zero": [-1, 0, 0, 1, 2],
    "half_away": [-2, -1, 1, 2, 3],
    "up": [-1, 0, 1, 2, 3],
}
HALF = Fraction(1, 2)
EXACT: dict[str, Callable[[Fraction], int]] = {
    "half_even": round,
    "half_up": lambda x: math.floor(x + HALF),
    "half_down": lambda x: math.ceil(x - HALF),
    "half_toward_zero": lambda x: (1 if x > 0 else -1) * math.ceil(abs(x) - HALF),
    "half_away": lambda x: (1 if x > 0 else -1) * math.floor(abs(x) + HALF),
    "up": math.ceil,
}


def test_the_table_covers_every_mode() -> None:
    assert set(TABLE) == set(ROUNDINGS) == set(EXACT)


@pytest.mark.parametrize("mode", TABLE)
def test_ties(mode: str) -> None:
    assert round_by(torch.tensor(TIES), mode).tolist() == TABLE[mode]


@pytest.mark.parametrize("mode", EXACT)
@given(
    x=st.floats(-(2**25), 2**25, width=32)
    | st.integers(-9, 9).map(lambda k: float(np.float32(k / 2 - 2**-25)))
)
def test_rounding_is_that_of_the_real_number(mode: str, x: float) -> None:
    assert round_by(torch.tensor(x, dtype=torch.float32), mode).item() == EXACT[mode](Fraction(x))


@pytest.mark.parametrize("mode", TABLE)
def test_infinities_stay(mode: str) -> None:
    assert round_by(torch.tensor([torch.inf, -torch.inf]), mode).tolist() == [torch.inf, -torch.inf]


@pytest.mark.parametrize("x", [-3.7, -0.25, 0.0, 0.5, 0.9, 2.0, 100.125])
def test_stochastic_rounding_is_unbiased_with_the_bernoulli_variance(x: float) -> None:
    n = 100_000
    frac = x - math.floor(x)
    rounded = stochastic(torch.full((n,), x), uniform(n, noise_key(1), tensor=0, purpose=0)).double()
    variance = frac * (1 - frac)
    # five standard deviations of the mean and of the variance of n Bernoulli draws, and the float32 of x
    assert abs(rounded.mean().item() - x) <= 5 * math.sqrt(variance / n) + 1e-6
    assert abs(rounded.var().item() - variance) <= 5 / math.sqrt(n) * 0.5 + 1e-6
    assert set(rounded.tolist()) <= {math.floor(x), math.ceil(x)}


@given(k=st.integers(-1000, 1000), u=st.floats(0, 1, exclude_max=True, width=32))
def test_stochastic_rounding_leaves_integers_alone(k: int, u: float) -> None:
    assert stochastic(torch.tensor(float(k)), torch.tensor(u)).item() == k


@pytest.mark.parametrize(
    ("x", "u", "expected"),
    [
        (0.5, 0.5, 0),
        (0.5, 0.25, 1),
        (-0.25, 0.5, 0),
        (-0.25, 0.75, -1),
        (-0.25, 0.0, 0),
        (255.0, 1 - 2**-24, 255),
    ],
)
def test_stochastic_rounding_compares_the_noise_with_the_fraction(x: float, u: float, expected: int) -> None:
    assert stochastic(torch.tensor(x), torch.tensor(u)).item() == expected


def test_the_floor_of_a_sum_would_leave_the_range() -> None:
    assert torch.floor(torch.tensor(255.0) + torch.tensor(1 - 2**-24)).item() == 256


@pytest.mark.parametrize(
    ("mode", "noise"), [("stochastic", None), ("half_even", torch.zeros(1)), ("down", None)]
)
def test_wrong_combinations_are_refused(mode: str, noise: torch.Tensor | None) -> None:
    with pytest.raises(RecipeError):
        round_by(torch.zeros(1), mode, noise)
