"""Granularity: scales per tensor, channel, group and block are one idea."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import RecipeError
from qcompiler.numerics import (
    Granularity,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    reduce_range,
    scale_shape,
    spread,
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], Granularity]:
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    sizes = tuple(draw(st.integers(1, 4)) for _ in shape)
    options: list[Granularity] = [
        PerTensor(),
        PerChannel(axis=axis),
        PerGroup(axis=axis, size=sizes[0]),
        PerBlock(sizes=sizes),
    ]
    granularity = draw(st.sampled_from(options))
    return shape, granularity


def block_of(index: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """The definition, one element at a time."""
    match granularity:
        case PerTensor():
            return ()
        case PerChannel(axis=axis):
            return (index[axis],)
        case PerGroup(axis=axis, size=size):
            return tuple(i // size if a == axis % len(index) else i for a, i in enumerate(index))
        case PerBlock(sizes=sizes):
            return tuple(i // size for i, size in zip(index, sizes, strict=True))


@given(case=cases())
def test_spread_gives_each_element_the_value_of_its_block(case: tuple[tuple[int, ...], Granularity]) -> None:
    shape, granularity = case
    wanted = scale_shape(shape, granularity)
    params = torch.arange(float(torch.Size(wanted).numel())).reshape(wanted)
    result = spread(params, shape, granularity)
    assert result.shape == shape
    for index in itertools.product(*map(range, shape)):
        assert result[index] == params[block_of(index, granularity)]


@given(case=cases(), seed=st.integers(0, 99))
def test_ranges_are_tight(case: tuple[tuple[int, ...], Granularity], seed: int) -> None:
    shape, granularity = case
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    lo, hi = reduce_range(x, granularity)
    assert lo.shape == hi.shape == scale_shape(shape, granularity)
    blocks: dict[tuple[int, ...], list[float]] = {}
    for index in itertools.product(*map(range, shape)):
        blocks.setdefault(block_of(index, granularity), []).append(x[index].item())
    assert all(lo[block] == min(values) and hi[block] == max(values) for block, values in blocks.items())


@pytest.mark.parametrize(
    "granularity",
    [
        PerChannel(axis=2),
        PerChannel(axis=-3),
        PerGroup(axis=0, size=0),
        PerBlock(sizes=(2,)),
        PerBlock(sizes=(2, 0)),
    ],
)
def test_what_does_not_fit_is_refused(granularity: Granularity) -> None:
    with pytest.raises(RecipeError, match="does not fit"):
        scale_shape((4, 6), granularity)


def test_parameters_of_another_shape_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"needs shape \(4,\)"):
        spread(torch.ones(6), (4, 6), PerChannel(axis=0))


def test_an_empty_tensor_has_no_range() -> None:
    with pytest.raises(RecipeError, match="empty"):
        reduce_range(torch.ones(0, 3), PerTensor())


def test_text() -> None:
    granularities = [PerTensor(), PerChannel(axis=0), PerGroup(axis=1, size=32), PerBlock(sizes=(16, 16))]
    assert [str(granularity) for granularity in granularities] == [
        "per-tensor",
        "per-channel(axis=0)",
        "per-group(axis=1, size=32)",
        "per-block(16x16)",
    ]
