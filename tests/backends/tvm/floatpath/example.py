"""One op or a chain as a graph, its groups, and what a compiled group computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from qcompiler.backends.tvm.build import compiled, host
from qcompiler.backends.tvm.executable import shapes_of
from qcompiler.backends.tvm.floatpath.choice import FUSED, made
from qcompiler.backends.tvm.floatpath.group import Group
from qcompiler.backends.tvm.floatpath.steps import groups_of
from qcompiler.backends.tvm.program import Compute
from qcompiler.ir import Graph, trace
from qcompiler.ir.graph import operator_of
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.rewrite.pipeline import run


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def graph_of(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Graph:
    module = function if isinstance(function, nn.Module) else Of(function)
    return run(CANONICAL, trace(module.eval(), tuple(inputs)))


def groups_in(graph: Graph, inputs: Sequence[Tensor]) -> list[Group]:
    steps = [Compute(node=node) for node in graph.fx.nodes if node.op == "call_function"]
    return groups_of(steps, graph.output.all_input_nodes, shapes_of(graph, inputs))


@torch.no_grad()
def by_torch(graph: Graph, inputs: Sequence[Tensor]) -> dict[Node, Any]:
    values: dict[Node, Any] = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.fx.nodes:
        if node.op == "get_attr":
            values[node] = graph.tensors[str(node.target)]
        elif node.op == "call_function":
            given: Any = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = operator_of(node)(*given[0], **given[1])
    return values


def computed(
    groups: Sequence[Group], values: dict[Node, Any], configuration: str = FUSED
) -> list[list[Tensor]]:
    """The outputs of groups by their functions; memory holds something else before."""
    module = compiled([made(group, configuration, f"f{i}") for i, group in enumerate(groups)], host())
    found = []
    for i, group in enumerate(groups):
        results = [torch.full(group.shapes[node], 7.0) for node in group.outputs]
        module[f"f{i}"](*(values[node].detach().contiguous().clone() for node in group.inputs), *results)
        found.append(results)
    return found
