"""Error measures: their definitions, streaming, and the accumulator bound."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import InputError, QCompilerError
from qcompiler.numerics import ErrorMeter, accumulator_bound, cosine, lsb_distance, max_abs, mse, sqnr

vectors = st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 2), min_size=1, max_size=20)


def test_known_values() -> None:
    y, z = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert sqnr(y, z) == pytest.approx(20.0)
    assert mse(y, z) == 0.125
    assert max_abs(y, z) == 0.5
    assert cosine(y, z) == pytest.approx(27 / (5 * math.sqrt(29.25)))


def test_edge_cases() -> None:
    y, zero = torch.ones(3), torch.zeros(3)
    assert sqnr(y, y) == sqnr(zero, zero) == math.inf
    assert sqnr(zero, y) == -math.inf
    assert sqnr(y, zero) == 0
    assert cosine(zero, zero) == 1 and cosine(y, zero) == 0
    assert math.isnan(max_abs(y, torch.tensor([1.0, math.nan, 1.0])))


@given(pairs=vectors, cut=st.integers(0, 20))
def test_batches_together_are_one_batch(pairs: list[tuple[float, float]], cut: int) -> None:
    y, z = torch.tensor(pairs).T
    whole, first, second = ErrorMeter(), ErrorMeter(), ErrorMeter()
    whole.update(y, z)
    first.update(y[:cut], z[:cut])
    second.update(y[cut:], z[cut:])
    first.merge(second)
    assert first.count == whole.count == len(pairs)
    assert first.mse == pytest.approx(whole.mse)
    assert first.sqnr == pytest.approx(whole.sqnr)
    assert first.cosine == pytest.approx(whole.cosine)
    assert first.max_abs == whole.max_abs


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError):
        sqnr(torch.ones(2), torch.ones(1))


def test_lsb_distance_counts_steps() -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.5, 2.0], [3.0, 1.0]])
    assert lsb_distance(a, b, 0.5).tolist() == [[1, 0], [0, 6]]
    assert lsb_distance(a, b, torch.tensor([[0.5], [1.0]])).tolist() == [[1, 0], [0, 3]]


@given(
    weights=st.lists(st.integers(-3, 3), min_size=3, max_size=3),
    zero=st.integers(0, 3),
    bias=st.integers(-5, 5),
)
def test_the_accumulator_bound_holds_and_bounds_each_term(weights: list[int], zero: int, bias: int) -> None:
    bound = accumulator_bound(torch.tensor([weights]), zero, 0, 3, torch.tensor([bias])).item()
    worst = max(
        abs(sum(w * (x - zero) for w, x in zip(weights, inputs, strict=True)) + bias)
        for inputs in itertools.product(range(4), repeat=3)
    )
    assert worst <= bound
    assert bound == sum(abs(w) for w in weights) * max(3 - zero, zero) + abs(bias)


def test_the_accumulator_bound_does_not_wrap() -> None:
    assert (
        accumulator_bound(torch.full((1, 70_000), 127, dtype=torch.int8), 0, 0, 255).item() == 2_266_950_000
    )
    assert (
        accumulator_bound(torch.full((1, 1, 2), -128, dtype=torch.int8), 0, -128, 127).item() == 2 * 128 * 128
    )


def test_an_error_is_one_sentence_with_its_parts() -> None:
    error = QCompilerError("weights overflow", node="fc1", why="K is 70000", fix="split the reduction")
    assert str(error) == "weights overflow at fc1, because K is 70000; split the reduction"
    assert (error.what, error.node, error.why, error.fix) == (
        "weights overflow",
        "fc1",
        "K is 70000",
        "split the reduction",
    )
    assert str(QCompilerError("weights overflow")) == "weights overflow"
