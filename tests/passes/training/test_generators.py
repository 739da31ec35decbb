"""Attention that backward computes again, with nothing of a random generator about it."""

from collections.abc import Collection

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from qcompiler.passes.training.generators import is_random
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.operators import ATTENTION
from qcompiler.passes.training.partition import Cutting
from tests.passes.training.steps import Block, compiled, error, gradients, stepped

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


class Checkpointed(nn.Module):
    """Something with dropout that its owner has computed again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(32, 128), nn.Linear(128, 32), nn.Linear(32, 32)

    def inner(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.dropout(F.gelu(self.first(x)), 0.3))
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(checkpoint(self.inner, x, use_reentrant=False)))
        return y


@pytest.mark.parametrize(("memory", "bound"), [("keep", 1e-6), ("act8", 0.02)])
def test_the_users_checkpoint_draws_the_same_in_both_runs(memory: str, bound: float) -> None:
    model, x = Checkpointed(), torch.randn(128, 32)
    torch.manual_seed(1)
    exact, expected = gradients(model, model, x)
    run, training = compiled(model, memory=memory, verify=True)
    run(x)
    torch.manual_seed(1)
    result, found = gradients(model, run, x)
    assert torch.equal(result, exact)
    assert error(found, expected) <= bound
    assert not any(value.shape == (128, 128) for value in training.pieces[0].saved)


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
