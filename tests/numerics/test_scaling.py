"""Scales from magnitudes: the least that hold them, and those of the steps before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.numerics import amax_history, amax_scale, delayed_scale, remember_amax, scale_of_step

LARGEST = [448.0, 57344.0, 6.0, 127.0]


@given(amax=st.floats(2.0**-100, 2.0**120, width=32), largest=st.sampled_from(LARGEST))
def test_a_scale_is_the_least_that_holds_the_magnitude(amax: float, largest: float) -> None:
    scale = amax_scale(torch.tensor(amax), largest)
    below = torch.nextafter(scale, torch.tensor(0.0))
    assert below.item() * largest < amax <= scale.item() * largest
    power = amax_scale(torch.tensor(amax), largest, power_of_two=True).item()
    assert power / 2 * largest < amax <= power * largest
    assert torch.frexp(torch.tensor(power)).mantissa == 0.5


@pytest.mark.parametrize("power_of_two", [False, True])
def test_zero_and_what_is_not_finite(power_of_two: bool) -> None:
    amax = torch.tensor([0.0, torch.inf, torch.nan, 1e-45, 3.4e38])
    scale = amax_scale(amax, 448.0, power_of_two=power_of_two)
    assert scale[0] == 1
    assert bool(scale[1:3].isnan().all())
    assert bool((scale[3:] >= torch.finfo(torch.float32).tiny).all())
    assert bool((scale[3:] * 448 >= amax[3:]).all())


def test_delayed_scaling_takes_the_largest_of_its_history() -> None:
    history = amax_history(3)
    assert delayed_scale(history, 448.0) == 1
    seen = []
    for amax in (4.48, 44.8, 1.0, 1.0, 1.0, torch.nan, torch.inf, 2.0, 2.0):
        history = remember_amax(history, torch.tensor(amax))
        seen.append(round(float(delayed_scale(history, 448.0)) * 448, 4))
    assert seen == [4.48, 44.8, 44.8, 44.8, 1.0, 1.0, 1.0, 2.0, 2.0]
    assert history.tolist() == [2.0, 2.0, 0.0]
    assert float(delayed_scale(history, 448.0, margin=2)) == 4 * float(delayed_scale(history, 448.0))


def test_histories_side_by_side_are_each_as_alone() -> None:
    history, amax = torch.rand(3, 4), torch.tensor([2.0, torch.inf, 0.5])
    together = remember_amax(history, amax)
    for row in range(3):
        assert torch.equal(together[row], remember_amax(history[row], amax[row]))
        assert torch.equal(delayed_scale(together, 448.0)[row], delayed_scale(together[row], 448.0))


@given(
    seen=st.floats(0, 2.0**100, width=32),
    amax=st.floats(2.0**-100, 2.0**100, width=32),
    margin=st.integers(-2, 4),
)
def test_the_scale_of_a_step_is_that_of_what_was_seen_or_else_its_own(
    seen: float, amax: float, margin: int
) -> None:
    scale = scale_of_step(torch.tensor(seen), torch.tensor(amax), 448.0, margin)
    own, before = amax_scale(torch.tensor(amax), 448.0), amax_scale(torch.tensor(seen), 448.0)
    assert scale == (before * 2.0**margin if seen else own)


def test_a_history_is_a_value() -> None:
    history = amax_history()
    assert history.shape == (1024,)
    remember_amax(history, torch.tensor(1.0))
    assert not history.any()
