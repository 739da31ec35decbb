"""The streaming histogram: exact counts, whatever the order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import CalibrationError
from qcompiler.numerics import Histogram

anything = st.floats(width=32, allow_nan=False, allow_infinity=False)
batches = st.lists(st.lists(anything, min_size=1, max_size=30), min_size=1, max_size=6)


def observe(*tensors: torch.Tensor) -> Histogram:
    h = Histogram()
    for tensor in tensors:
        h.observe(tensor)
    return h


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def state(h: Histogram) -> tuple[object, ...]:
    return h.low, h.high, h.zeros, h.exponent, h.bins.tolist()


@given(data=batches, permutation=st.randoms(use_true_random=False))
def test_order_and_split_do_not_matter(data: list[list[float]], permutation) -> None:  # type: ignore[no-untyped-def]
    flat = [value for batch in data for value in batch]
    expected = state(observe(tensor(flat)))
    assert state(observe(*map(tensor, data))) == expected
    permutation.shuffle(flat)
    assert state(observe(*map(tensor, [flat[:1], flat[1:]] if len(flat) > 1 else [flat]))) == expected


@given(first=batches, second=batches)
def test_merging_is_observing_both(first: list[list[float]], second: list[list[float]]) -> None:
    left, right = observe(*map(tensor, first)), observe(*map(tensor, second))
    left.merge(right)
    assert state(left) == state(observe(*map(tensor, first + second)))
    left.merge(Histogram())
    assert state(left) == state(observe(*map(tensor, second + first)))


@given(data=batches)
def test_each_element_lies_in_its_bin(data: list[list[float]]) -> None:
    h = observe(*map(tensor, data))
    values = np.sort(np.array([value for batch in data for value in batch], dtype=np.float64))
    assert math.frexp(h.width)[0] == 0.5
    assert h.counts.sum() == h.count == values.size
    assert len(h.counts) == len(h.centers) <= 2048
    middles = np.repeat(h.centers, h.counts)
    assert np.all(np.abs(values - middles) <= h.width / 2)
    assert [h.low, h.high, h.zeros] == [values[0], values[-1], np.count_nonzero(values == 0)]


@given(data=batches)
def test_bins_are_as_narrow_as_fits(data: list[list[float]]) -> None:
    h = observe(*map(tensor, data))
    low, high = min(h.low, 0.0), max(h.high, 0.0)
    narrower = h.width / 2
    bins = int(high / narrower) + 1 + (int(-low / narrower) + 1 if low < 0 else 0)
    assert bins > 2048 or h.exponent == -126


@given(data=batches)
def test_negation_mirrors_the_bins(data: list[list[float]]) -> None:
    values = [[value or 1.0 for value in batch] for batch in data]  # zero has no mirror image
    h, mirrored = observe(*map(tensor, values)), observe(*(-tensor(batch) for batch in values))
    assert h.exponent == mirrored.exponent
    assert h.bins.tolist() == mirrored.bins[::-1].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_other_types_and_views_are_seen_as_float32(dtype: torch.dtype) -> None:
    x = (torch.randn(30, 40) * 10).to(dtype)
    assert state(observe(x.T[::2])) == state(observe(x.T[::2].float().contiguous()))


def test_more_than_one_chunk() -> None:
    x = torch.randn(200_001)
    assert state(observe(x)) == state(observe(*torch.split(x, 999)))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ([], "is empty"),
        ([1.0, math.nan], "contains NaN"),
        ([math.inf, 0.0], "contains inf"),
        ([-math.inf], "contains inf"),
    ],
)
def test_what_has_no_range_is_refused_by_name_and_leaves_no_trace(
    values: list[float], complaint: str
) -> None:
    h = Histogram(name="layer1.conv")
    before = state(h)
    with pytest.raises(CalibrationError, match=f"layer1.conv {complaint}"):
        h.observe(torch.tensor(values))
    assert state(h) == before
