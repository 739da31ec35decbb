"""The maps of 8-bit codes, and coding by block."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import RecipeError
from qcompiler.optim.codes import BLOCK, SIGNED, UNSIGNED, CodeMap, blocks, dynamic_values

MAPS = {"signed": SIGNED, "unsigned": UNSIGNED}
LINEAR = CodeMap(values=tuple(code / 255 for code in range(256)))
each_map = pytest.mark.parametrize("codes", MAPS.values(), ids=MAPS)


@each_map
def test_a_map_has_256_rising_values_with_0_and_1(codes: CodeMap) -> None:
    assert len(codes.values) == 256 and list(codes.values) == sorted(set(codes.values))
    assert codes.values[codes.zero] == 0 and codes.values[-1] == 1


def test_the_values_are_the_middles_of_the_parts_of_seven_decades() -> None:
    """By hand: the smallest decade of the signed map is one part, that of the unsigned map two."""
    assert SIGNED.values[128:131] == pytest.approx((0.55e-6, 3.25e-6, 7.75e-6), rel=1e-12)
    assert UNSIGNED.values[:4] == pytest.approx((0, 3.25e-7, 7.75e-7, 2.125e-6), rel=1e-12)
    assert SIGNED.values[-2] == pytest.approx(1 - 0.9 / 128) and UNSIGNED.values[-2] == pytest.approx(
        1 - 0.9 / 256
    )
    assert SIGNED.values[0] == -SIGNED.values[-2]
    for decade in range(7):
        low, high = 10.0 ** (decade - 7), 10.0 ** (decade - 6)
        assert sum(low < value < high for value in SIGNED.values) == 2**decade
        assert sum(-high < value < -low for value in SIGNED.values) == 2**decade
        assert sum(low < value < high for value in UNSIGNED.values) == 2 ** (decade + 1)


@pytest.mark.parametrize("codes", [*MAPS.values(), LINEAR], ids=[*MAPS, "linear"])
@given(exponent=st.floats(-9, 0), seed=st.integers(0, 2**32 - 1))
def test_the_code_is_the_nearest(codes: CodeMap, exponent: float, seed: int) -> None:
    x = (np.random.default_rng(seed).uniform(-1, 1, 512) * 10**exponent).astype(np.float32)
    values = np.array(codes.values, dtype=np.float32).astype(np.float64)
    chosen = np.abs(values[codes.nearest(torch.from_numpy(x)).numpy()] - x)
    best = np.abs(values[None] - x[:, None]).min(1)
    if codes.keeps_positive:
        small = (x > 0) & (x < values[1])
        best[small] = values[1] - x[small]
    # the midpoints are float32, so that a number within their last place may go either way
    assert (chosen <= best + np.abs(x) * 2.0**-23).all()


@each_map
def test_the_code_changes_at_the_midpoint_and_nowhere_else(codes: CodeMap) -> None:
    values = np.array(codes.values, dtype=np.float32)
    midpoints = ((values[:-1].astype(np.float64) + values[1:]) / 2).astype(np.float32)
    midpoints[0] *= not codes.keeps_positive
    after = np.nextafter(midpoints, np.float32(2))
    assert codes.nearest(torch.from_numpy(midpoints)).tolist() == [*range(255)]
    assert codes.nearest(torch.from_numpy(after)).tolist() == [*range(1, 256)]
    assert codes.nearest(torch.from_numpy(values)).tolist() == [*range(256)]


@each_map
@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_zero_and_the_largest_come_back_exactly(codes: CodeMap, count: int) -> None:
    x = torch.rand(count, generator=torch.Generator().manual_seed(count)) * 3e-30
    x[::7] = 0
    coded, absmax = codes.encode(x)
    y = codes.decode(coded, absmax)
    assert coded.dtype == torch.uint8 and coded.shape == (count,) and absmax.shape == (blocks(count),)
    assert torch.equal(y[x == 0], x[x == 0])
    for start in range(0, count, BLOCK):
        here = slice(start, start + BLOCK)
        assert y[here].max() == x[here].max() == absmax[start // BLOCK]


@each_map
def test_a_block_of_zeros_stays_zero(codes: CodeMap) -> None:
    coded, absmax = codes.encode(torch.zeros(300))
    assert not absmax.any() and not codes.decode(coded, absmax).any()


@each_map
def test_the_relative_error_is_that_of_the_parts(codes: CodeMap) -> None:
    """Parts of width d, x uniform on [a, 10 a]: mean |error| / x <= d / 4 * E[1 / x] = d / 4 * ln 10 / (9 a).

    It doubles from one decade to the next lower one, and no error exceeds half a part. It is less at the ends
    of a decade, where a value of the next one may be nearer.
    """
    generator = torch.Generator().manual_seed(0)
    for decade in range(3):
        low = 0.1 / 10**decade
        part = 9 * low / 2 ** (6 - decade + (codes is UNSIGNED))
        x = low + 9 * low * torch.rand(400, 256, generator=generator)
        x[:, 0] = 1
        error = (codes.decode(*codes.encode(x.flatten())).view_as(x) - x).abs()[:, 1:]
        assert error.max() <= part / 2 * (1 + 1e-4)
        assert (error / x[:, 1:]).mean() <= part / 4 * math.log(10) / (9 * low)


def test_a_second_moment_comes_back_as_at_least_a_part_of_itself() -> None:
    """7.75e-7 is followed by the next decade's 2.125e-6: what is just below their midpoint loses most."""
    x = torch.logspace(-44, 0, 100_000, dtype=torch.float64).float()
    x[0::256] = 1
    y = UNSIGNED.decode(*UNSIGNED.encode(x))
    assert (y / x).min() == pytest.approx(7.75 / 14.5, rel=1e-3)
    assert SIGNED.decode(*SIGNED.encode(x)).min() == 0


@each_map
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_its_block_and_no_other(codes: CodeMap, bad: float) -> None:
    x = torch.ones(768)
    x[300] = bad
    finite = torch.isfinite(codes.decode(*codes.encode(x))).view(3, 256)
    assert finite.all(1).tolist() == [True, False, True] and not finite[1].any()


def test_a_linear_map_loses_what_a_dynamic_one_keeps() -> None:
    x = torch.tensor([1.0, 1e-3, 1e-5])
    assert LINEAR.decode(*LINEAR.encode(x)).tolist()[1:] == [0, 0]
    assert UNSIGNED.decode(*UNSIGNED.encode(x)).tolist() == pytest.approx(x.tolist(), rel=0.2)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (dynamic_values(signed=True)[1:], "255 values"),
        (tuple(reversed(dynamic_values(signed=True))), "rising"),
        (tuple(value / 2 for value in dynamic_values(signed=True)), "up to 1"),
        (tuple((code + 1) / 256 for code in range(256)), "without 0"),
    ],
)
def test_what_is_no_map_is_refused(values: tuple[float, ...], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        CodeMap(values=values)


def test_values_that_one_comparison_cannot_part_are_refused() -> None:
    close = CodeMap(values=(*(code / 1000 for code in range(253)), 0.9999, 0.99995, 1.0))
    with pytest.raises(RecipeError, match="too close"):
        close.encode(torch.rand(4))
