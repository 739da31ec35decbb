"""A quantized graph as one that calls the ops: what a linear reads is quantized once for all that read it.

    linear(dq(quantize_rows(x)), dq(w), b)  -->  a, s = triton_quantize_rows(rows(x), format)
                                                 y = candidate(a, s, packed(w), t, b, residual, act, dtype)
    linear(x, dq(w in groups), b)           -->  y = candidate(rows(x), w, t, z, b, residual, act, dtype)

Everything else stays as it is. The graph holds no sizes, so it serves all calls for which the same
candidates were chosen.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.backends.reference import coded
from qcompiler.backends.triton.engine.candidates import Candidate
from qcompiler.backends.triton.engine.layers import Layer
from qcompiler.backends.triton.engine.weights import tensor, weight_of
from qcompiler.backends.triton.ops.alignment import lies_askew
from qcompiler.backends.triton.ops.quantize import packed
from qcompiler.ir import Graph, arguments

qc = torch.ops.qcompiler

QUANTIZERS: Mapping[str, tuple[Any, ...]] = {"e4m3b128": (qc.triton_quantize_blocks.default,)}
"""By a problem's format, the op that makes codes and what it is told, where that is not said by rows."""


def rows(x: Tensor) -> Tensor:
    """[..., K]  -->  [M, K], rows one behind another."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def aligned(x: Tensor) -> Tensor:
    return x.clone() if lies_askew(x) else x


def like_rows_of(y: Tensor, x: Tensor) -> Tensor:
    """[M, N]  -->  [..., N], as x [..., K] is."""
    return y.reshape(*x.shape[:-1], y.shape[-1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """What computes a layer in a lowered graph, and the values there that it is computed from."""

    layer: Layer
    by: Candidate
    node: Node
    x: Node
    bias: Node | None
    residual: Node | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A lowered graph, and its calls of candidates in execution order."""

    graph: Graph
    calls: tuple[Call, ...]


def lower(graph: Graph, layers: Sequence[Layer], chosen: Mapping[str, Candidate]) -> Program:
    """A program of the same inputs and results; `chosen` is by the name of a layer's anchor."""
    ends = {layer.result: layer for layer in layers}
    needed, made = read(graph, ends), Lowering(graph)
    for node in graph.fx.nodes:
        if node in ends:
            made.compute(ends[node], chosen[ends[node].anchor.name])
        elif node in needed:
            made.keep(node)
    return made.finished()


def read(graph: Graph, ends: Mapping[Node, Layer]) -> set[Node]:
    """What is computed still: what results follow from, where a layer reads floats and no codes."""
    found: set[Node] = set(graph.inputs)
    waiting = [graph.output]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        layer = ends.get(node)
        reads = node.all_input_nodes if layer is None else (layer.x, layer.bias, layer.residual)
        waiting += [each for each in reads if each is not None]
    return found


class Lowering:
    """One lowering under way."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.fx = graph, fx.Graph()
        self.tensors: dict[str, Tensor] = dict(graph.tensors)
        self.now: dict[Node, Node] = {}  # value of the graph -> what stands for it
        self.flat: dict[Node, Node] = {}  # and as rows
        self.even: dict[Node, Node] = {}  # that begin where kernels may read them
        self.quantized: dict[tuple[Node, str], tuple[Node, Node]] = {}
        self.calls: list[Call] = []

    def keep(self, node: Node) -> None:
        """The results of a layer stand for the end of its tail, which is all that others read."""
        self.now[node] = self.fx.node_copy(node, self.now.__getitem__)

    def compute(self, layer: Layer, by: Candidate) -> None:
        residual = None if layer.residual is None else self.rows(layer.residual)
        bias = None if layer.bias is None else self.now[layer.bias]
        y = self.call(
            layer.anchor.name, by.compute, *self.operands(layer, by), bias, residual,
            activation=layer.activation, dtype=layer.dtype, **by.more,
        )  # fmt: skip
        self.calls.append(
            Call(
                layer=layer, by=by, node=y, x=self.now[layer.x], bias=bias,
                residual=None if layer.residual is None else self.now[layer.residual],
            )
        )  # fmt: skip
        self.now[layer.result] = self.call("shaped", like_rows_of, y, self.now[layer.x])

    def operands(self, layer: Layer, by: Candidate) -> tuple[Node | None, ...]:
        """The four that a candidate takes first."""
        if not by.reads_codes:
            b = self.constant(f"{layer.codes}.decoded", lambda: decoded(layer, self.graph))
            return self.rows(layer.x), None, b, None
        if layer.is_weight_only:
            return self.aligned(layer.x), *self.few_bits(layer)
        a, s = self.codes(layer.x, layer.problem.format)
        b = self.constant(f"{layer.codes}.packed", lambda: packed(tensor(layer.codes, self.graph)))
        return a, s, b, self.scale(layer)

    def scale(self, layer: Layer) -> Node:
        """Of each output, or of each square of them."""
        block = arguments(layer.weight)["block"]
        if not block:
            return self.fx.get_attr(layer.scale)
        scale = tensor(layer.scale, self.graph)
        return self.constant(f"{layer.scale}.squares", scale[::block].contiguous)

    def few_bits(self, layer: Layer) -> tuple[Node | None, ...]:
        """Codes, scales and zero points as kernels read them."""
        found = weight_of(layer.region, self.graph)
        parts = {"packed": found.codes, "scales": found.scales, "zeros": found.zeros}
        return tuple(
            None if part is None else self.held(f"{layer.codes}.{name}", part) for name, part in parts.items()
        )

    def codes(self, x: Node, format: str) -> tuple[Node, Node]:
        """Codes and scales of rows, which all that read the value share."""
        if (x, format) not in self.quantized:
            make, *more = QUANTIZERS.get(format, (qc.triton_quantize_rows.default, format))
            both = self.call(f"{x.name}_q", make, self.rows(x), *more)
            found = [self.call("part", operator.getitem, both, index) for index in range(2)]
            self.quantized[x, format] = (found[0], found[1])
        return self.quantized[x, format]

    def rows(self, x: Node) -> Node:
        if x not in self.flat:
            self.flat[x] = self.call("rows", rows, self.now[x])
        return self.flat[x]

    def aligned(self, x: Node) -> Node:
        """Rows that 16 bytes are read of at a time."""
        if x not in self.even:
            self.even[x] = self.call("aligned", aligned, self.rows(x))
        return self.even[x]

    def constant(self, name: str, make: Callable[[], Tensor]) -> Node:
        return self.fx.get_attr(name) if name in self.tensors else self.held(name, make())

    def held(self, name: str, x: Tensor) -> Node:
        self.tensors[name] = x
        return self.fx.get_attr(name)

    def call(self, name: str, target: Any, *args: Any, **kwargs: Any) -> Node:
        return self.fx.create_node("call_function", target, args, kwargs, name=name)

    def finished(self) -> Program:
        used = {str(node.target) for node in self.fx.nodes if node.op == "get_attr"}
        kept = {name: found for name, found in self.tensors.items() if name in used}
        return Program(graph=replace(self.graph, fx=self.fx, tensors=kept), calls=tuple(self.calls))


def decoded(layer: Layer, graph: Graph) -> Tensor:
    """(q - z) s in the model's type."""
    weight = coded(layer.weight, lambda node: tensor(node, graph))
    return replace(weight, dtype=layer.dtype).decoded()
