"""Plans under a budget: never above it, and as good as the best of all on small problems."""

from collections.abc import Collection
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from qcompiler.errors import PlanError
from qcompiler.passes.training.budget import Choice, Problem, choose
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.liveness import Gap, Timeline
from qcompiler.passes.training.operators import HEAVY
from qcompiler.passes.training.partition import Cutting
from qcompiler.passes.training.recompute import kinds
from qcompiler.passes.training.saved import Saved
from tests.passes.training.steps import Block, error, gradients, stepped

ALLOWED = [(8, 4, 2), (8, 4), (8,), (1,)]


def problem(seed: int, share: float) -> Problem:
    """Values of random sizes that live over one another, as in a step, and a share of their peak."""
    random = np.random.default_rng(seed)
    count, length = 5, 40
    values, gaps = [], []
    live = random.integers(0, 20_000, length)
    for place in range(count):
        elements = int(random.integers(1, 9)) * 2048
        start, stop = sorted(random.integers(1, length - 1, 2))
        allowed = ALLOWED[random.integers(len(ALLOWED))]
        dtype = torch.bool if allowed == (1,) else torch.float32
        value = Saved(name=f"v{place}", shape=(elements,), dtype=dtype, bits=allowed)
        values.append(value)
        live[max(start - 3, 0) : stop + 3] += value.bytes()
        gaps.append(Gap(start=int(start), stop=int(stop) + 1, bytes=value.bytes(), values=(value.name,)))
    timeline = Timeline(names=tuple(map(str, range(length))), live=live, gaps=tuple(gaps))
    costs = {value.name: float(random.uniform(0.01, 0.3)) for value in values if len(value.bits) > 1}
    return Problem(
        values=values, costs=costs, timeline=timeline, budget=int(share * live.max()), limit=0.3
    )  # fmt: skip


def enumerated(problem: Problem) -> Choice | None:
    """The best of all choices, for problems of a few values."""
    widths = product(*[(None, *value.bits) for value in problem.values])
    names = [value.name for value in problem.values]
    outcomes = (
        problem.outcome({name: width for name, width in zip(names, row, strict=True) if width is not None})
        for row in widths
    )
    return min(filter(problem.holds, outcomes), key=lambda choice: (choice.work, choice.error), default=None)


def test_the_search_finds_what_enumeration_finds() -> None:
    met = worse = 0
    for seed in range(40):
        for share in (0.95, 0.8, 0.65, 0.5):
            given = problem(seed, share)
            best = enumerated(given)
            try:
                found = choose(given)
            except PlanError:
                found = None
            assert (found is None) >= (best is None)  # nothing is found where there is nothing
            if best is None:
                continue
            met += 1
            if found is None or found.work > best.work:
                worse += 1
                continue
            assert given.holds(found)
    assert met > 50
    assert worse <= met // 10  # it is a search


def test_more_memory_is_never_more_work() -> None:
    for seed in range(20):
        work = []
        for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
            try:
                work.append(choose(problem(seed, share)).work)
            except PlanError:
                assert not work
        assert work == sorted(work, reverse=True), seed


def test_a_budget_is_kept_and_forward_is_exact() -> None:
    model, x = Block(), torch.randn(4, 64, 64)
    exact, expected = gradients(model, model, x)
    result, found, piece = stepped(model, x, memory=0.7)
    assert torch.equal(result, exact)
    assert piece.after.bytes <= 0.7 * piece.before.bytes
    assert error(found, expected) <= 0.2


def test_what_cannot_fit_is_refused_with_the_least_that_would() -> None:
    with pytest.raises(Exception, match=r"does not fit into 10,000 bytes, because .* it needs [0-9,]+"):
        stepped(Block(), torch.randn(4, 16, 64), memory=10_000)


@pytest.mark.parametrize("recipe", ["float", "int8"])
def test_what_a_product_is_computed_from_again_is_not_stored_in_two_bits(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sums average the noise, but the sigmoid behind them bends it."""
    cut = Cutting.cut

    def again(cutting: Cutting, _: Collection[str] = ()) -> Halves:
        second = [kind for kind in kinds(cutting.joint) if kind.shapes[-1][-1] == 48]
        return cut(cutting, [name for kind in second for name in kind.nodes])

    monkeypatch.setattr(Cutting, "cut", again)
    layers = (nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 48), nn.Sigmoid(), nn.Linear(48, 32))
    _, _, piece = stepped(nn.Sequential(*layers), torch.randn(64, 32), recipe=recipe, memory="act2")
    assert {value.bits for value in piece.saved if value.shape == (64, 40) and value.bits != (1,)} == {(8, 4)}


def test_computing_again_and_four_bits_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products more in a block, and what crosses is sixteen times smaller."""
    model, x = Block(width=256, heads=4), torch.randn(8, 128, 256)
    exact, expected = gradients(model, model, x)
    _, _, before = stepped(model, x, memory="keep")
    cut = Cutting.cut
    products: list[int] = []

    def again(cutting: Cutting, names: Collection[str] = ()) -> Halves:
        """The first product of the second half, and the scores of attention."""
        wide = [kind for kind in kinds(cutting.joint) if kind.shapes[-1] in ((256, 1024), (32, 64, 128))]
        halves = cut(cutting, [name for kind in wide for name in kind.nodes])
        products.append(sum(node.target in HEAVY for node in halves.backward.graph.nodes))
        return halves

    monkeypatch.setattr(Cutting, "cut", again)
    result, found, piece = stepped(model, x, memory="act4")
    assert torch.equal(result, exact)
    assert products[-1] <= 12 + 2
    assert before.after.crossing / piece.after.crossing >= 16
    assert error(found, expected) <= 0.2
