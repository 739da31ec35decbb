"""Stages and pipelines: each invariant catches what it is for, and a wrong pass is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import GraphError
from qcompiler.ir import Draft, Graph, check_stage, trace
from qcompiler.rewrite import Pass, run

aten = torch.ops.aten
qc = torch.ops.qcompiler


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.linear(x))
        return y, y.argmax(1)


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(Small().eval(), torch.randn(2, 3))


def draft_at(graph: Graph, stage: str) -> tuple[Draft, Any]:
    draft = Draft(replace(graph, stage=stage))
    return draft, next(node for node in draft.nodes if node.target is aten.relu.default)


def replaced(graph: Graph, stage: str, target: Callable[..., Any], *rest: Any) -> Graph:
    """The relu replaced by another call."""
    draft, relu = draft_at(graph, stage)
    draft.replace(relu, draft.call(target, relu.args[0], *rest, before=relu))
    return draft.finish()


def without_type(graph: Graph) -> Graph:
    draft, relu = draft_at(graph, "traced")
    del relu.meta["val"]
    return draft.finish()


def without_constant(graph: Graph) -> Graph:
    return replace(graph, tensors={})


def with_method(graph: Graph) -> Graph:
    draft, relu = draft_at(graph, "traced")
    with draft.fx.inserting_before(relu):
        call = draft.fx.call_method("exp", (relu.args[0],))
    draft.replace(relu, call)
    return draft.finish()


def quantized(graph: Graph, zero_type: torch.dtype) -> Graph:
    """relu between quantize and a dequantize whose zero point has the given type."""
    draft, relu = draft_at(graph, "quantized")
    scale = draft.constant("scale", torch.tensor(0.1), before=relu)
    zero = draft.constant("zero", torch.tensor(0, dtype=torch.int8), before=relu)
    other = draft.constant("other", torch.tensor(0, dtype=zero_type), before=relu)
    codes = draft.call(qc.quantize.default, relu.args[0], scale, zero, "int8", before=relu)
    draft.replace(relu, draft.call(qc.dequantize.default, codes, scale, other, "int8", before=relu))
    return draft.finish()


def integer_product(graph: Graph) -> Graph:
    draft, relu = draft_at(graph, "quantized")
    left = draft.constant("left", torch.ones(2, 2, dtype=torch.int32), before=relu)
    draft.replace(relu, draft.call(aten.matmul.default, left, left, before=relu))
    return draft.finish()


@pytest.mark.parametrize(
    ("broken", "invariant"),
    [
        (without_type, "typed"),
        (without_constant, "constants exist"),
        (with_method, "calls only"),
        (lambda graph: replaced(graph, "traced", aten.relu_.default), "pure"),
        (lambda graph: replaced(graph, "canonical", aten.dropout.default, 0.5, False), "inference form"),
        (lambda graph: replaced(graph, "canonical", aten.alias.default), "inference form"),
        (lambda graph: replaced(graph, "quantized", aten.dropout.default, 0.5, False), "inference form"),
        (lambda graph: quantized(graph, torch.int32), "typed codes"),
        (integer_product, "float arithmetic"),
    ],
)
def test_each_invariant_catches_its_violation(
    graph: Graph, broken: Callable[[Graph], Graph], invariant: str
) -> None:
    with pytest.raises(GraphError, match=rf"malformed \({invariant}\) at .* because"):
        check_stage(broken(graph))


def test_sound_graphs_pass(graph: Graph) -> None:
    for stage in ("traced", "canonical", "quantized"):
        check_stage(replace(graph, stage=stage))
    check_stage(quantized(graph, torch.int8))


def step(name: str, apply: Callable[[Graph], Graph], **named: Any) -> Pass:
    return Pass(name=name, apply=apply, requires="traced", ensures="traced", **named)


def test_stages_follow_one_another(graph: Graph) -> None:
    close = Pass(name="close", apply=lambda g: g, requires="traced", ensures="canonical")
    assert run([step("first", lambda g: g), close], graph).stage == "canonical"
    with pytest.raises(GraphError, match="pass 'late' needs a graph of stage 'traced', got 'canonical'"):
        run([close, step("late", lambda g: g)], graph)


def test_a_broken_result_is_caught_between_passes(graph: Graph) -> None:
    with pytest.raises(GraphError, match="constants exist"):
        run([step("forgets", without_constant), step("next", lambda g: g)], graph)


@pytest.mark.parametrize(
    ("apply", "complaint"),
    [
        (lambda g: replaced(g, "traced", aten.mul.Tensor, 1.001), "dB"),
        (lambda g: replaced(g, "traced", aten.sigmoid.default), "dB"),
        (lambda g: replaced(g, "traced", aten.unsqueeze.default, 0), r"\[1, 5, 4\]"),
        (lambda g: replaced(g, "traced", aten._to_copy.default), "dB"),
        (lambda g: replaced(g, "traced", aten.log.default), "infinite or NaN"),
        (lambda g: replaced(g, "traced", aten.sum.dim_IntList, [1], True), r"\[5, 1\]"),
    ],
)
def test_verify_names_the_wrong_pass(graph: Graph, apply: Callable[[Graph], Graph], complaint: str) -> None:
    passes = [step("right", lambda g: g), step("wrong", apply), step("right again", lambda g: g)]
    sample = [torch.randn(5, 3)]
    with pytest.raises(GraphError, match=f"pass 'wrong' changed output 0.*{complaint}"):
        run(passes, graph, verify=sample)
    run(passes, graph)  # unseen without samples
    run([step("wrong", apply, preserves=None)], graph, verify=sample)  # and where values are meant to change


def test_rounding_and_infinities_pass_verification(graph: Graph) -> None:
    def infinite(g: Graph) -> Graph:
        return replaced(g, "traced", aten.masked_fill.Scalar, torch.tensor(True), float("-inf"))

    def rounded(g: Graph) -> Graph:
        draft, relu = draft_at(g, "traced")
        other = draft.call(aten.mul.Tensor, relu, 1 + 1e-6, before=relu.next)
        draft.replace(relu, other)
        return draft.finish()

    run([step("rounds", rounded)], graph, verify=[torch.randn(5, 3)])
    filled = infinite(graph)
    run([step("nothing", lambda g: g)], filled, verify=[torch.randn(5, 3)])
