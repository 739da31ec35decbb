"""Values of one place in every layer are measured together."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

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


def test_what_is_read_otherwise_is_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: Sequence[tuple[Saved, ...]] = grouped(3, monkeypatch)
    heads = [kind for kind in kinds if kind[0].shape == (4, 2, 16, 32)]
    assert len(heads) >= 3  # queries, keys and values
