"""Attention that backward computes again, with nothing of a random generator about it."""

from collections.abc import Collection

import pytest
import torch
from torch import fx

from qcompiler.passes.training.generators import is_random
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.operators import ATTENTION
from qcompiler.passes.training.partition import Cutting
from tests.passes.training.steps import Block, error, gradients, stepped

aten = torch.ops.aten


def test_attention_is_computed_again_without_a_generators_state(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Block(fused=True), torch.randn(4, 16, 64)
    exact, expected = gradients(model, model, x)
    cut = Cutting.cut
    seen: list[Halves] = []

    def again(cutting: Cutting, names: Collection[str] = ()) -> Halves:
        attention = [node.name for node in cutting.joint.graph.nodes if node.target in ATTENTION]
        seen.append(cut(cutting, attention))
        return seen[-1]

    monkeypatch.setattr(Cutting, "cut", again)
    result, found, piece = stepped(model, x, memory="act8")
    assert torch.equal(result, exact)
    assert error(found, expected) < 0.02
    for half in (seen[-1].forward, seen[-1].backward):
        assert sum(node.target in ATTENTION for node in half.graph.nodes) == 1
        assert not any("rng" in str(node.target) for node in half.graph.nodes)
    assert all(value.dtype.is_floating_point or value.bits for value in piece.saved)


def test_a_budget_is_kept_where_attention_is_fused() -> None:
    model, x = Block(fused=True), torch.randn(4, 64, 64)
    exact, expected = gradients(model, model, x)
    result, found, piece = stepped(model, x, memory=0.7)
    assert torch.equal(result, exact)
    assert piece.after.bytes <= 0.7 * piece.before.bytes
    assert error(found, expected) <= 0.2


@pytest.mark.parametrize(
    ("target", "more", "kwargs", "random"),
    [
        (aten._scaled_dot_product_flash_attention_for_cpu.default, (), {}, False),
        (aten._scaled_dot_product_flash_attention_for_cpu.default, (0.0, True), {}, False),
        (aten._scaled_dot_product_flash_attention_for_cpu.default, (0.1,), {}, True),
        (aten._scaled_dot_product_flash_attention_for_cpu.default, (), {"dropout_p": 0.1}, True),
        (aten.native_dropout.default, (0.5, True), {}, True),
        (aten.rand_like.default, (), {}, True),
        (aten.add.Tensor, (), {}, False),
    ],
)
def test_what_draws_is_told_by_its_dropout(
    target: object, more: tuple[object, ...], kwargs: dict[str, object], random: bool
) -> None:
    graph = fx.Graph()
    operands = [graph.placeholder(name) for name in "qkv"]
    count = sum(argument.name in {"query", "key", "value", "self", "input", "other"}
                for argument in target._schema.arguments)  # type: ignore[attr-defined]  # fmt: skip
    assert is_random(graph.call_function(target, (*operands[:count], *more), kwargs)) == random  # type: ignore[arg-type]
