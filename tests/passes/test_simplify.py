"""Q/DQ move through data movement and cancel, bit for bit, and only where the parameters are equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.ir import Draft, Graph, evaluate, trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.materialize import materialize
from qcompiler.passes.simplify import SIMPLIFY_QDQ
from qcompiler.plan import Plan, ValueSpec
from qcompiler.rewrite import Trait, run
from qcompiler.rewrite.traits import TRAITS

aten = torch.ops.aten
qc = torch.ops.qcompiler

MOVES: dict[Any, Any] = {
    aten.view.default: lambda x: aten.view.default(x, [2, 32]),
    aten.reshape.default: lambda x: aten.reshape.default(x, [2, 32]),
    aten._unsafe_view.default: lambda x: aten._unsafe_view.default(x, [2, 32]),
    aten.permute.default: lambda x: x.permute(0, 2, 3, 1),
    aten.transpose.int: lambda x: x.transpose(1, 3),
    aten.t.default: lambda x: aten.t.default(x.select(1, 0).select(1, 0)),
    aten.squeeze.dim: lambda x: aten.squeeze.dim(x[:, :1], 1),
    aten.squeeze.dims: lambda x: aten.squeeze.dims(x[:, :1, :1], [1, 2]),
    aten.unsqueeze.default: lambda x: x.unsqueeze(1),
    aten.slice.Tensor: lambda x: x[:, 1:3],
    aten.select.int: lambda x: x.select(1, 2),
    aten.expand.default: lambda x: x.unsqueeze(2).expand(-1, -1, 3, -1, -1),
    aten.flip.default: lambda x: x.flip(1),
    aten.pixel_shuffle.default: lambda x: torch.pixel_shuffle(x, 2),
}


class Moved(nn.Module):
    """exp(move(x)): the input and everything between it and the exponential can be codes."""

    def __init__(self, move: Any) -> None:
        super().__init__()
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.move(x).exp()
        return y


def value(name: str, scale: float = 0.03125, zero_point: int = 100) -> ValueSpec:
    return ValueSpec(value=name, label=name, format="uint8", why="", scale=scale, zero_point=zero_point)


def canonical(move: Any) -> Graph:
    return run(CANONICAL, trace(Moved(move).eval(), torch.randn(2, 4, 2, 4)))


def written_and_simplified(graph: Graph, *values: ValueSpec) -> tuple[Graph, Graph]:
    written = run((materialize(Plan(recipe="r", target="cpu", values=values)),), graph)
    return written, run(SIMPLIFY_QDQ, written)


def ops(graph: Graph) -> list[Any]:
    return [node.target for node in graph.nodes if node.op == "call_function"]


def test_every_op_that_moves_data_has_an_example() -> None:
    assert set(MOVES) == {op for op, t in TRAITS.items() if Trait.MOVES_DATA in t and Trait.IDENTITY not in t}


@pytest.mark.parametrize("op", MOVES, ids=str)
def test_codes_pass_through_data_movement_bit_for_bit(op: Any) -> None:
    graph = canonical(MOVES[op])
    moves = [node for node in graph.nodes if node.op == "call_function"][:-1]
    assert op in [node.target for node in moves] or op is aten.reshape.default  # tracing writes a view
    values = [value(node.name) for node in (graph.inputs[0], *moves)]
    written, simplified = written_and_simplified(graph, *values)
    x = torch.randn(2, 4, 2, 4) * 4  # some values saturate
    assert torch.equal(evaluate(written, [x])[0], evaluate(simplified, [x])[0])
    assert ops(simplified) == [
        qc.quantize.default, *(node.target for node in moves), qc.dequantize.default, aten.exp.default,
    ]  # fmt: skip


@pytest.mark.parametrize("change", [{"scale": 0.0625}, {"zero_point": 101}], ids=["scale", "zero point"])
def test_nothing_passes_where_the_parameters_differ(change: dict[str, Any]) -> None:
    graph = canonical(lambda x: x.transpose(1, 2))
    x, moved = graph.inputs[0].name, "transpose"
    _, simplified = written_and_simplified(graph, value(x), value(moved, **change))
    assert ops(simplified).count(qc.quantize.default) == 2
    refused = [note for note in simplified.notes if note.outcome == "refused"]
    assert [(note.rule, note.reason) for note in refused] == [
        ("move-through", "scale or zero point differ on the two sides")
    ]


def test_quantizing_what_was_just_dequantized_is_undone_only_with_equal_parameters() -> None:
    graph = canonical(lambda x: x)
    once, _ = written_and_simplified(graph, value(graph.inputs[0].name))
    again = {node.name for node in once.nodes if node.target is qc.dequantize.default}.pop()
    for second, left in [(value(again), 1), (value(again, scale=0.0625), 2), (value(again, zero_point=9), 2)]:
        twice = run(
            (replace(materialize(Plan(recipe="r", target="cpu", values=(second,))), requires="quantized"),),
            once,
        )
        simplified = run(SIMPLIFY_QDQ, twice)
        x = torch.randn(2, 4, 2, 4)
        assert torch.equal(evaluate(twice, [x])[0], evaluate(simplified, [x])[0])
        assert ops(twice).count(qc.quantize.default) == 2
        assert ops(simplified).count(qc.quantize.default) == left


def test_parameters_per_channel_do_not_pass() -> None:
    """A channel axis would have to move along; no plan asks for that, so no rule does it."""
    graph = canonical(lambda x: x.transpose(1, 2))
    draft = Draft(graph)
    x, transpose = draft.nodes[0], draft.nodes[1]
    scale = draft.constant("s", torch.full((4,), 0.1), before=transpose)
    zero = draft.constant("z", torch.zeros(4, dtype=torch.uint8), before=transpose)
    codes = draft.call(qc.quantize.default, x, scale, zero, "uint8", 1, before=transpose)
    back = draft.call(qc.dequantize.default, codes, scale, zero, "uint8", 1, before=transpose)
    transpose.replace_input_with(x, back)
    after = transpose.next
    again = draft.call(qc.quantize.default, transpose, scale, zero, "uint8", 1, before=after)
    decoded = draft.call(qc.dequantize.default, again, scale, zero, "uint8", 1, before=after)
    after.replace_input_with(transpose, decoded)
    assert ops(run(SIMPLIFY_QDQ, draft.finish("quantized"))).count(qc.quantize.default) == 2
