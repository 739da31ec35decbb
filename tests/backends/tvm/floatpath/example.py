"""One op or a chain as a graph, its groups, and what a compiled group computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from qcompiler.backends.reference import decoded
from qcompiler.backends.shapes import shapes_of
from qcompiler.backends.tvm.build import compiled, host
from qcompiler.backends.tvm.floatpath.build import stages
from qcompiler.backends.tvm.floatpath.choice import FUSED, made
from qcompiler.backends.tvm.floatpath.elementwise import FUNCTION
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


UNIT = 2.0**-24  # of rounding to float32
NUDGE = 2.0**-16  # by which inputs are moved, in float64, to see how far results move
DRAWS = 8


@torch.no_grad()
def exactly(group: Group, values: Mapping[Node, Any]) -> list[tuple[Tensor, float]]:
    """The outputs of a group in float64, and how far from each its function may be.

    A sum that is rounded n times is the exact sum of terms each of which is moved by n units at most, so an
    output may move as far as inputs moved so make it, and by as many units of its own:

        |error| <= n u (max |f(x (1 + d s)) - f(x)| / d + max |f(x)|)        s: signs, the worst of 8 draws
    """
    generator, steps = torch.Generator().manual_seed(0), roundings(group)
    exact = in_double(group, values, lambda x: x)
    farthest = [0.0] * len(exact)
    for _ in range(DRAWS):

        def moved(x: Tensor) -> Tensor:
            return x * (1 + NUDGE * (2.0 * torch.randint(2, x.shape, generator=generator) - 1))

        for i, (y, z) in enumerate(zip(in_double(group, values, moved), exact, strict=True)):
            farthest[i] = max(farthest[i], float((y - z).abs().max()) / NUDGE)
    return [(y, steps * UNIT * (far + float(y.abs().max()))) for y, far in zip(exact, farthest, strict=True)]


def in_double(group: Group, values: Mapping[Node, Any], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    known = {**values, **{node: change(decoded(values[node]).double()) for node in group.inputs}}
    for node in group.nodes:
        given: Any = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        known[node] = operator_of(node)(*given[0], **given[1])
    return [known[node] for node in group.outputs]


def roundings(group: Group) -> int:
    """Of one number, at most: the sums that it passes through, and the operations of every op."""
    arguments, _ = stages(group)

    def sums(tensor: Any) -> int:
        own = math.prod(int(axis.dom.extent) for axis in getattr(tensor.op, "reduce_axis", ()))
        return own + max(map(sums, tensor.op.input_tensors), default=0)

    return max(map(sums, arguments)) + FUNCTION * len(group.nodes)


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
