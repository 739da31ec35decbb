"""A quantized graph as one that calls the ops: what a linear reads is quantized once for all that read it.

    linear(dq(quantize_rows(x)), dq(w), b)  -->  a, s = triton_quantize_rows(rows(x), format)
                                                 y = candidate(a, s, packed(w), t, b, residual, act, dtype)
    linear(dq(quantize(x, s)), dq(w), b)    -->  a = triton_quantize_by_scale(rows(x), s, format)
                                                 y = candidate(a, None, packed(w), s t, b, residual, act, ..)
    quantize(that, u), read by such alone   -->  a = the same with codes for its result, by u
    quantize_rows(a long result)            -->  y, m = the same with maxima of rows
                                                 a, s = triton_quantize_by_amax(y, m, format)
    linear(x, dq(w in groups), b)           -->  y = candidate(rows(x), w, t, z, b, residual, act, dtype)
    act(linear(x, G, ..)) linear(x, U, ..)  -->  y = candidate(rows(x), [G; U], .., gated=True)

Everything else stays as it is. The graph holds no sizes, so it serves all calls for which the same
candidates were chosen.
"""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.backends.reference import coded
from qcompiler.backends.triton.engine.candidates import ONWARD, Candidate
from qcompiler.backends.triton.engine.layer import Layer
from qcompiler.backends.triton.engine.onward import end, handed_on, peaked, read, source
from qcompiler.backends.triton.engine.weights import stacked, tensor, weight_of
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
    """What computes a layer in a lowered graph, and the values there that it is computed from.

    takes_codes: whether x is codes [M, K'] that another layer handed on, and no floats [..., K]. hands_codes:
    whether its result is.
    """

    layer: Layer
    by: Candidate
    node: Node
    x: Node
    bias: Node | None
    residual: Node | None
    takes_codes: bool = False
    hands_codes: bool = False

    @property
    def kernel(self) -> str:
        return kernel_of(self.layer, self.by, self.hands_codes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A lowered graph, and its calls of candidates in execution order."""

    graph: Graph
    calls: tuple[Call, ...]


def lower(graph: Graph, layers: Sequence[Layer], chosen: Mapping[str, Candidate]) -> Program:
    """A program of the same inputs and results; `chosen` is by the name of a layer's anchor."""
    handed = handed_on(layers, chosen)
    ends = {end(layer, handed): layer for layer in layers}
    needed, made = read(graph, ends, handed), Lowering(graph, handed, peaked(layers, chosen))
    for node in graph.fx.nodes:
        if node in ends:
            made.compute(ends[node], chosen[ends[node].anchor.name])
        elif node in needed:
            made.keep(node)
    return made.finished()


class Lowering:
    """One lowering under way."""

    def __init__(self, graph: Graph, handed: Mapping[Node, Layer], peaked: Collection[Node]) -> None:
        self.graph, self.fx, self.handed, self.peaked = graph, fx.Graph(), handed, peaked
        self.tensors: dict[str, Tensor] = dict(graph.tensors)
        self.now: dict[Node, Node] = {}  # value of the graph -> what stands for it
        self.flat: dict[Node, Node] = {}  # and as rows
        self.even: dict[Node, Node] = {}  # that begin where kernels may read them
        self.quantized: dict[tuple[Node, str], tuple[Node, Node]] = {}
        self.amax: dict[Node, Node] = {}  # a result -> the maxima of its rows
        self.calibrated: dict[Node, Node] = {}  # `quantize` -> codes
        self.leading: dict[Node, Node] = {}  # codes handed on -> floats of as many rows, in their shape
        self.calls: list[Call] = []

    def keep(self, node: Node) -> None:
        """The results of a layer stand for the end of its tail, which is all that others read."""
        self.now[node] = self.fx.node_copy(node, self.now.__getitem__)

    def compute(self, layer: Layer, by: Candidate) -> None:
        residual = None if layer.residual is None else self.rows(layer.residual)
        bias = self.bias(layer)
        x, y_is = source(layer, self.handed), end(layer, self.handed)
        hands_codes = y_is is layer.onward
        given = (*self.operands(layer, by), bias, residual)
        how: dict[str, Any] = {"activation": layer.activation, **by.more}
        how |= {"gated": True} if layer.problem.gated else {}
        if hands_codes:
            y = self.call(layer.anchor.name, by.onward, *given, scale=self.scale(y_is), **how)
        elif y_is in self.peaked:
            both = self.call(layer.anchor.name, by.peaked, *given, dtype=layer.dtype, **how)
            y, self.amax[y_is] = self.parts(both)
        else:
            y = self.call(layer.anchor.name, by.compute, *given, dtype=layer.dtype, **how)
        self.calls.append(
            Call(
                layer=layer, by=by, node=y, x=self.now[x], bias=bias,
                residual=None if layer.residual is None else self.now[layer.residual],
                takes_codes=x is layer.coded, hands_codes=hands_codes,
            )
        )  # fmt: skip
        like = self.leading.get(x, self.now[x])
        if hands_codes:
            self.now[y_is], self.leading[y_is] = y, like
        else:
            self.now[y_is] = self.call("shaped", like_rows_of, y, like)

    def bias(self, layer: Layer) -> Node | None:
        """Of a gate the constants of both, one behind the other."""
        if layer.bias is None or layer.beside is None:
            return None if layer.bias is None else self.now[layer.bias]
        names = [str(each.bias.target) for each in layer.linears if each.bias is not None]
        return self.constant(
            ".".join((*names, "both")), lambda: torch.cat([tensor(name, self.graph) for name in names])
        )

    def operands(self, layer: Layer, by: Candidate) -> tuple[Node | None, ...]:
        """The four that a candidate takes first."""
        if not by.reads_codes:
            b = self.constant(f"{stem(layer)}.decoded", lambda: decoded(layer, self.graph))
            return self.rows(layer.x), None, b, None
        if layer.is_weight_only:
            return self.aligned(layer.x), *self.few_bits(layer)
        b = self.constant(f"{layer.codes}.packed", lambda: packed(tensor(layer.codes, self.graph)))
        if layer.coded is not None:
            return self.by_one_scale(layer, layer.coded), None, b, self.both_scales(layer, layer.coded)
        a, s = self.codes(layer.x, layer.problem.format)
        return a, s, b, self.weight_scale(layer)

    def weight_scale(self, layer: Layer) -> Node:
        """Of each output, or of each square of them."""
        block = arguments(layer.weight)["block"]
        if not block:
            return self.fx.get_attr(layer.scale)
        scale = tensor(layer.scale, self.graph)
        return self.constant(f"{layer.scale}.squares", scale[::block].contiguous)

    def few_bits(self, layer: Layer) -> tuple[Node | None, ...]:
        """Codes, scales and zero points as kernels read them."""
        found = stacked([weight_of(each.region, self.graph) for each in layer.linears])
        parts = {"packed": found.codes, "scales": found.scales, "zeros": found.zeros}
        return tuple(
            None if part is None else self.held(f"{stem(layer)}.{name}", part) for name, part in parts.items()
        )

    def codes(self, x: Node, format: str) -> tuple[Node, Node]:
        """Codes and scales of rows, which all that read the value share."""
        if (x, format) not in self.quantized:
            name, flat = f"{x.name}_q", self.rows(x)
            if format in QUANTIZERS:
                make, *more = QUANTIZERS[format]
                both = self.call(name, make, flat, *more)
            elif x in self.amax:
                both = self.call(name, qc.triton_quantize_by_amax.default, flat, self.amax[x], format)
            else:
                both = self.call(name, qc.triton_quantize_rows.default, flat, format)
            self.quantized[x, format] = self.parts(both)
        return self.quantized[x, format]

    def parts(self, both: Node) -> tuple[Node, Node]:
        first, second = (self.call("part", operator.getitem, both, index) for index in range(2))
        return first, second

    def by_one_scale(self, layer: Layer, coded: Node) -> Node:
        """Codes that were handed on, or are made by a known scale, which all that read them share."""
        if coded in self.handed:
            return self.now[coded]
        if coded not in self.calibrated:
            self.calibrated[coded] = self.call(
                f"{layer.x.name}_q", qc.triton_quantize_by_scale.default, self.rows(layer.x),
                self.scale(coded), layer.problem.format,
            )  # fmt: skip
        return self.calibrated[coded]

    def scale(self, coded: Node) -> Node:
        """The scale of a `quantize`, [1]."""
        name = str(arguments(coded)["scale"].target)
        return self.constant(f"{name}.of_all", lambda: tensor(name, self.graph).reshape(1))

    def both_scales(self, layer: Layer, coded: Node) -> Node:
        """s_x t_n, rounded once, as the reference has them."""
        name = str(arguments(coded)["scale"].target)
        return self.constant(
            f"{layer.scale}.times.{name}",
            lambda: tensor(name, self.graph).float() * tensor(layer.scale, self.graph).float(),
        )

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
    """(q - z) s in the model's type, [rows, K]."""
    weights = [coded(each.weight, lambda node: tensor(node, graph)) for each in layer.linears]
    return torch.cat([replace(weight, dtype=layer.dtype).decoded() for weight in weights])


def stem(layer: Layer) -> str:
    """What the names of constants that are made of its weight begin with."""
    return ".".join(each.codes for each in layer.linears)


def kernel_of(layer: Layer, by: Candidate, hands_codes: bool) -> str:
    """What reports call what computes a layer."""
    name = ONWARD if hands_codes else by.name
    return f"{name} gated" if layer.problem.gated and by.reads_codes else name
