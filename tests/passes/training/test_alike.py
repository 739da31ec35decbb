"""Values of one place in every layer are measured together."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.passes.training.alike import alike
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.saved import Saved, saved
from qcompiler.passes.training.sensitivity import sensitivities
from tests.passes.training.steps import Block, stepped


def grouped(layers: int, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[Saved, ...], ...]:
    """The kinds of what crosses in so many blocks, one after another."""
    found: list[tuple[tuple[Saved, ...], ...]] = []

    def spy(halves: Halves, *_: Any) -> None:
        found.append(alike(halves, [value for value in saved(halves) if value.bits]))

    with monkeypatch.context() as patch:
        patch.setattr("qcompiler.training.session.store", spy)
        stepped(
            nn.Sequential(*(Block(fused=True) for _ in range(layers))), torch.randn(4, 16, 64), memory="act4"
        )
    return found[0]


def test_more_layers_are_no_more_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the first and the last, whose values somebody else makes or reads."""
    three, five = grouped(3, monkeypatch), grouped(5, monkeypatch)
    assert len(five) == len(three)
    assert sum(map(len, five)) > sum(map(len, three))
    for kind in five:
        assert len({(value.shape, value.dtype, value.bits) for value in kind}) == 1


def test_what_a_kind_is_felt_is_about_the_sum_of_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws are independent, and so variances add."""
    compared: list[tuple[float, float]] = []

    def spy(halves: Halves, *_: Any) -> None:
        inputs = [node.meta["val"] for node in halves.forward.graph.find_nodes(op="placeholder")]
        with torch._subclasses.fake_tensor.unset_fake_temporarily():
            given = [torch.randn(tuple(x.shape)) / x.shape[-1] ** 0.5 for x in inputs]
            kinds = alike(halves, [value for value in saved(halves) if len(value.bits) > 1])
            kind = max(kinds, key=len)
            together = sensitivities(halves, kind, given)
            alone = sum(sensitivities(halves, [value], given)[value.name] for value in kind)
        compared.append((sum(together.values()), alone))

    monkeypatch.setattr("qcompiler.training.session.store", spy)
    stepped(nn.Sequential(*(Block() for _ in range(3))), torch.randn(4, 16, 64), memory="act4")
    together, alone = compared[0]
    assert 0.5 * alone < together < 2 * alone


class Twins(nn.Module):
    """Two values of one shape, made and read alike, or one of them by something else."""

    def __init__(self, made: bool, read: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(32, 32) for _ in range(3))
        self.last = nn.Linear(32, 64 if read else 32)
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.first(x), self.second(x)
        if self.made:
            other = other.relu()
        y: Tensor = torch.cat([self.third(one), self.last(other)], -1)
        return y


@pytest.mark.parametrize(("made", "read", "count"), [(False, False, 1), (True, False, 2), (False, True, 2)])
def test_values_are_of_a_kind_by_what_makes_and_what_reads_them(
    made: bool, read: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    def spy(halves: Halves, *_: Any) -> None:
        wide = [value for value in saved(halves) if value.shape == (64, 32) and value.dtype.is_floating_point]
        names = {"addmm", "addmm_1", "relu"}
        found.append(alike(halves, [value for value in wide if value.name in names]))

    monkeypatch.setattr("qcompiler.training.session.store", spy)
    stepped(Twins(made, read), torch.randn(64, 32), memory="act4")
    assert sum(map(len, found[0])) == 2
    assert len(found[0]) == count
