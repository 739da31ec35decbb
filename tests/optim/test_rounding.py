"""Stochastic rounding of weights to bfloat16."""

from __future__ import annotations

import math

import pytest
import torch

from qcompiler.optim.rounding import to_bfloat16, weight_noise

CPU = torch.device("cpu")


@pytest.mark.parametrize("x", [1.001, -1.001, 0.3, -3.1415926, 1e-40, 255.99])
def test_the_mean_is_the_number_and_only_neighbours_come_out(x: float) -> None:
    n = 100_000
    noise = weight_noise(n, seed=1, step=2, ordinal=3, offset=0, device=CPU)
    rounded = to_bfloat16(torch.full((n,), x), noise)
    low, high = sorted(set(rounded.tolist()))
    exact = torch.tensor(x).item()
    assert low < exact < high
    assert torch.tensor([low]).bfloat16().view(torch.int16) + (1 if x > 0 else -1) == torch.tensor(
        [high]
    ).bfloat16().view(torch.int16)
    share = (exact - low) / (high - low)
    # five standard deviations of the mean of n draws
    deviation = 5 * (high - low) * math.sqrt(share * (1 - share) / n)
    assert abs(rounded.double().mean().item() - exact) <= deviation


def test_what_bfloat16_holds_is_left_alone() -> None:
    held = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    rounded = to_bfloat16(held.float(), torch.zeros(2**16))
    assert torch.equal(rounded.nan_to_num(7.0), held.nan_to_num(7.0))
    assert torch.equal(rounded.isnan(), held.isnan())


def test_nan_stays_nan_where_a_carry_would_make_it_a_number() -> None:
    bits = torch.tensor([0x7FFFFFFF, 0x7F800001, -1], dtype=torch.int32)
    assert to_bfloat16(bits.view(torch.float32), torch.zeros(3)).isnan().all()


def test_noise_is_addressed_by_element_and_depends_on_each_part_of_its_key() -> None:
    key = {"seed": 1, "step": 2, "ordinal": 3}
    whole = weight_noise(100, **key, offset=0, device=CPU)
    assert torch.equal(weight_noise(40, **key, offset=60, device=CPU), whole[60:])
    for name in key:
        assert not torch.equal(whole, weight_noise(100, **{**key, name: 9}, offset=0, device=CPU))
