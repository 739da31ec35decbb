"""Statistics do not depend on how the data comes; what cannot give ranges is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError
from qcompiler.ir import Graph, trace
from qcompiler.passes.calibrate import Ranges, calibrate
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.rewrite import run


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + shift
        return y


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return run(CANONICAL, trace(TwoInputs().eval(), pairs()[0]))


def pairs() -> list[tuple[Tensor, Tensor]]:
    """Ten rows in batches of four, four and two."""
    generator = torch.Generator().manual_seed(0)
    x, shift = torch.randn(10, 3, 6, 6, generator=generator), torch.randn(10, 4, 1, 1, generator=generator)
    return [(x[i : i + 4], shift[i : i + 4]) for i in (0, 4, 8)]


def seen(graph: Graph, data: Any) -> Ranges:
    return calibrate(
        graph, data, [node for node in graph.nodes if node.op in ("placeholder", "call_function")]
    )


def assert_same(one: Ranges, other: Ranges) -> None:
    assert list(one) == list(other)
    for name, statistics in one.items():
        first, second = statistics.histogram, other[name].histogram
        assert (first.low, first.high, first.zeros, first.exponent) == (
            second.low, second.high, second.zeros, second.exponent,
        )  # fmt: skip
        assert (first.bins == second.bins).all()
        torch.testing.assert_close(statistics.mean, other[name].mean)
        torch.testing.assert_close(statistics.largest, other[name].largest, rtol=0, atol=0)


class Loader:
    """Like a DataLoader: no length, lists of tensors, fresh at every reading."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        return (list(pair) for pair in pairs())


FORMS: dict[str, Callable[[], Any]] = {
    "generator": lambda: (pair for pair in pairs()),
    "loader": Loader,
    "dicts": lambda: [{"x": x, "shift": shift} for x, shift in pairs()],
    "dicts in another order": lambda: [{"shift": shift, "x": x} for x, shift in pairs()],
    "tuple of tuples": lambda: tuple(pairs()),
    "another order": lambda: pairs()[::-1],
}


@pytest.mark.parametrize("form", FORMS)
def test_any_iterable_in_any_order_gives_the_same_statistics(graph: Graph, form: str) -> None:
    assert_same(seen(graph, pairs()), seen(graph, FORMS[form]()))


def test_any_split_into_batches_gives_the_same_statistics(graph: Graph) -> None:
    rows = [(x[i : i + 1], shift[i : i + 1]) for x, shift in pairs() for i in range(len(x))]
    # Of the inputs: a convolution's own rounding depends on the batch size.
    assert_same(calibrate(graph, pairs(), graph.inputs), calibrate(graph, rows, graph.inputs))


def test_a_batch_of_one_tensor_needs_no_tuple() -> None:
    x = torch.randn(2, 3)
    graph = run(CANONICAL, trace(nn.Linear(3, 2).eval(), x))
    assert seen(graph, [x, x])[graph.inputs[0].name].histogram.count == 12


def test_what_is_kept_does_not_grow_with_the_data(graph: Graph) -> None:
    def kept(ranges: Ranges) -> list[int]:
        return [
            statistics.histogram.bins.nbytes
            + sum(
                x.nbytes for x in (statistics.largest, statistics.total, statistics.squares) if x is not None
            )
            for statistics in ranges.values()
        ]

    few, many = seen(graph, pairs()), seen(graph, pairs() * 5)
    assert kept(few) == kept(many)
    assert all(many[name].histogram.count == 5 * few[name].histogram.count for name in few)


def test_the_statistics_per_channel_are_those_of_the_data(graph: Graph) -> None:
    x = torch.cat([x for x, _ in pairs()])
    found = seen(graph, pairs())["x"]
    rows = x.movedim(1, 0).flatten(1)
    torch.testing.assert_close(found.mean, rows.mean(1))
    assert found.largest is not None and found.squares is not None
    assert torch.equal(found.largest, rows.abs().amax(1))
    torch.testing.assert_close(found.squares / found.count, (rows**2).mean(1))


def test_progress_knows_the_length_of_a_list_but_not_of_a_generator(graph: Graph) -> None:
    told: list[tuple[str, int, int | None]] = []
    for data in (pairs(), (pair for pair in pairs())):
        calibrate(graph, data, graph.inputs, tell=lambda *args: told.append(args))
    assert [(done, total) for _, done, total in told] == [
        (0, 3),
        (1, 3),
        (2, 3),
        (0, None),
        (1, None),
        (2, None),
    ]


# ---------------------------------------------------------------- what cannot give ranges


def test_empty_data_is_refused(graph: Graph) -> None:
    with pytest.raises(CalibrationError, match=r"calibration data is empty.*at least one batch"):
        seen(graph, [])


@pytest.mark.parametrize("data", [torch.randn(4, 3, 6, 6), 3, "images/"], ids=["tensor", "number", "text"])
def test_what_is_no_iterable_of_batches_is_refused(graph: Graph, data: Any) -> None:
    with pytest.raises(CalibrationError, match=f"calibration data is a {type(data).__name__}"):
        seen(graph, data)


@pytest.mark.parametrize(("bad", "kind"), [(torch.nan, "NaN"), (torch.inf, "inf"), (-torch.inf, "inf")])
def test_a_bad_input_is_named_with_its_batch(graph: Graph, bad: float, kind: str) -> None:
    data = pairs()
    data[1][0][0, 0, 0, 0] = bad
    with pytest.raises(CalibrationError, match=f"input 'x' of calibration batch 2 contains {kind}"):
        seen(graph, data)


def test_an_empty_batch_is_named(graph: Graph) -> None:
    x, shift = pairs()[0]
    with pytest.raises(CalibrationError, match="input 'x' of calibration batch 2 is empty"):
        seen(graph, [(x, shift), (x[:0], shift[:0])])


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.sqrt())
        return y


def test_nan_that_the_model_makes_is_named_where_it_first_shows() -> None:
    good = torch.ones(2, 4)
    graph = run(CANONICAL, trace(Root().eval(), good))
    with pytest.raises(
        CalibrationError, match=r"'sqrt' .*contains NaN.*computes it from calibration batch 3"
    ):
        seen(graph, [good, good, -good])
