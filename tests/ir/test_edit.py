"""Drafts, arguments and evaluation."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from qcompiler.errors import InputError
from qcompiler.ir import Draft, Graph, arguments, evaluate, format_text, spec, trace, with_tensors

aten = torch.ops.aten


class Chain(nn.Module):
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor, unused: Tensor) -> Tensor:
        return torch.relu(torch.exp(x + self.shift) - 1) * 2


@pytest.fixture
def graph() -> Graph:
    return trace(Chain().eval(), (torch.ones(2, 3), torch.ones(2)))


def find(nodes: list[Node], target: Any) -> Node:
    return next(node for node in nodes if node.target == target)


def test_a_draft_leaves_its_origin_alone(graph: Graph) -> None:
    text = format_text(graph)
    draft = Draft(graph)
    relu = find(draft.nodes, aten.relu.default)
    draft.replace(relu, draft.call(aten.sigmoid.default, relu.args[0], before=relu))
    changed = draft.finish()
    assert format_text(graph) == text
    assert "aten.relu" not in format_text(changed) and "aten.sigmoid" in format_text(changed)


def test_new_values_are_typed_and_inherit_their_place(graph: Graph) -> None:
    draft = Draft(graph)
    relu = find(draft.nodes, aten.relu.default)
    summed = draft.call(
        aten.sum.dim_IntList, relu, [1], before=find(draft.nodes, aten.mul.Tensor), origin=relu
    )
    found = spec(summed)
    assert found is not None and found.dtype == torch.float32
    assert found.shape[0] == spec(relu).shape[0] and len(found.shape) == 1  # type: ignore[union-attr]
    assert summed.meta["stack_trace"] == relu.meta["stack_trace"]


def test_finish_drops_what_nobody_reads(graph: Graph) -> None:
    draft = Draft(graph)
    add = find(draft.nodes, aten.add.Tensor)
    draft.replace(add, add.args[0])  # type: ignore[arg-type]
    finished = draft.finish()
    assert finished.tensors == {} and len(finished.inputs) == 2
    assert len(finished.nodes) == len(graph.nodes) - 2


def test_constants_get_names_of_their_own(graph: Graph) -> None:
    draft = Draft(graph)
    add = find(draft.nodes, aten.add.Tensor)
    tensor = torch.zeros(3)
    first = draft.constant("shift", tensor, before=add)
    again = draft.constant("shift", tensor, before=add)
    assert (first.target, again.target) == ("shift_1", "shift_1")
    assert draft.tensor(first) is tensor and draft.tensor(add) is None
    assert torch.equal(draft.tensors["shift"], torch.ones(3))


def test_only_some_readers_are_replaced() -> None:
    class Shared(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.exp()
            return y + 1, y * 2

    draft = Draft(trace(Shared().eval(), torch.ones(2, 3)))
    exp, add = find(draft.nodes, aten.exp.default), find(draft.nodes, aten.add.Tensor)
    draft.replace(exp, exp.args[0], only=[add])  # type: ignore[arg-type]
    assert list(exp.users) == [find(draft.nodes, aten.mul.Tensor)]


def test_values_are_freed_after_their_last_reader(graph: Graph) -> None:
    alive: dict[str, weakref.ref[Tensor]] = {}
    most = 0

    def observe(node: Node, found: Any) -> None:
        nonlocal most
        if node.op == "call_function":
            alive[node.name] = weakref.ref(found)
        most = max(most, sum(ref() is not None for ref in alive.values()))

    evaluate(graph, [torch.ones(2, 3), torch.ones(2)], observe=observe)
    assert len(alive) == 5
    assert most == 2  # the value itself and the one that it was made from


def test_evaluate_counts_its_inputs(graph: Graph) -> None:
    for inputs in ([], [torch.ones(2, 3)], [torch.ones(2, 3)] * 3):
        with pytest.raises(InputError, match="takes 2 inputs"):
            evaluate(graph, inputs)


def test_evaluate_in_float64_and_by_another_rule(graph: Graph) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    wanted = torch.relu(torch.exp(x + 1) - 1) * 2
    (wide,) = evaluate(graph, [x, torch.ones(4)], lift=Tensor.double)
    assert torch.equal(wide, wanted)

    def negated(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], values: Any) -> Any:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
        return -result if node.target is aten.mul.Tensor else result

    (turned,) = evaluate(graph, [x, torch.ones(4)], lift=Tensor.double, evaluate_node=negated)
    assert torch.equal(turned, -wanted)


def test_arguments_have_one_form(graph: Graph) -> None:
    draft = Draft(graph)
    relu, last = find(draft.nodes, aten.relu.default), find(draft.nodes, aten.mul.Tensor)
    brief = draft.call(aten.sum.dim_IntList, relu, [1], before=last)
    spelled = draft.call(aten.sum.dim_IntList, dim=[1], self=relu, keepdim=False, dtype=None, before=last)
    assert brief.args == spelled.args == (relu, [1], False)
    assert brief.kwargs == spelled.kwargs == {}
    assert arguments(brief) == {"self": relu, "dim": [1], "keepdim": False, "dtype": None}
    scaled = draft.call(aten.add.Tensor, relu, 1, alpha=2, before=last)
    assert (scaled.args, scaled.kwargs) == ((relu, 1), {"alpha": 2})


def test_other_constants_under_the_same_nodes(graph: Graph) -> None:
    moved = with_tensors(graph, {"shift": torch.zeros(3)})
    x = torch.randn(2, 3)
    torch.testing.assert_close(evaluate(moved, [x, x[:, 0]])[0], torch.relu(torch.exp(x) - 1) * 2)
    assert torch.equal(graph.tensors["shift"], torch.ones(3))
