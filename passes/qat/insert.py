"""Fake quantization at the edges of a plan: the graph that quantization-aware training runs.

    f(x, w, b)  -->  f(F_x(x), F_w(w), F_b(b))          where `materialize` would put dq(q(x)), dq(w'), dq(b')

Every F is a call of a module by name, so the graph is structure alone: who owns the modules gives them their
state. A value that only moves codes on lies on their grid already, and gets no F of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.errors import PlanError
from qcompiler.ir import Graph, arguments, label
from qcompiler.ir.graph import operator_of
from qcompiler.numerics import (
    parse_format,
    pass_through,
    quantize_through,
)
from qcompiler.passes.materialize import constant_operands, params_of_constant
from qcompiler.passes.plan import largest_step, upper_bound
from qcompiler.passes.qat.lineage import Emitter, Recorder
from qcompiler.plan import Plan, ValueSpec, WeightSpec

qc = torch.ops.qcompiler

HOME = "fake_quant"  # the name under which all that is not the model's stands in it
DIFFERENTIABLE = (
    qc.global_avg_pool.default, qc.space_to_depth.default, qc.attention.default, qc.rotary.default
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Network:
    """A graph to train, the modules that it calls by name, and the tensors that it reads besides the model's.

    values: (spec, largest scale that the value may have) by module name. weights: by module name.
    folded: the graph that computes the canonical graph's constants, in their order there.
    """

    graph: fx.Graph
    folded: fx.Graph
    values: Mapping[str, tuple[ValueSpec, float]]
    weights: Mapping[str, WeightSpec]
    constants: Mapping[str, Tensor]


def fake_quantized(graph: Graph, plan: Plan, recorder: Recorder) -> Network:
    """The network of a canonical graph whose constants were made under a recorder."""
    builder = Builder(graph, plan, recorder)
    for node in graph.fx.nodes:
        builder.add(node)
    folded = Emitter(recorder, fx.Graph(), f"{HOME}.folded")
    folded.graph.output([folded.emit(tensor) for tensor in graph.tensors.values()])
    return Network(
        graph=builder.new, folded=folded.graph, values=builder.values, weights=builder.weights,
        constants={**builder.tensors.constants, **folded.constants},
    )  # fmt: skip


class Builder:
    """Copies a graph node by node, and puts fake quantization where the plan says."""

    def __init__(self, graph: Graph, plan: Plan, recorder: Recorder) -> None:
        self.graph = graph
        self.new = fx.Graph()
        self.tensors = Emitter(recorder, self.new, f"{HOME}.constants")
        self.specs: dict[str, list[ValueSpec]] = {}
        for value in plan.values:
            self.specs.setdefault(value.value, []).append(value)
        self.layers = {spec.layer: spec for spec in plan.weights}
        self.operands = {
            (node, operand): format.name for node, operand, format in constant_operands(plan, graph.by_name)
        }
        self.copies: dict[Node, Node] = {}
        self.rounded: dict[tuple[str, bool], Node] = {}  # value, is it dynamic -> its fake-quantized self
        self.scales: dict[str, Node] = {}  # value -> the scale that it was calibrated to
        self.values: dict[str, tuple[ValueSpec, float]] = {}
        self.weights: dict[str, WeightSpec] = {}

    def add(self, node: Node) -> None:
        match node.op:
            case "output":
                returned: Any = node.args[0]
                self.new.output(fx.map_arg(list(returned), self.copies.__getitem__))
                return
            case "placeholder":
                self.copies[node] = self.new.placeholder(node.name)
            case "get_attr":
                self.copies[node] = self.tensors.emit(self.graph.tensors[str(node.target)])
            case _:
                check_differentiable(node)
                rounded = self.layer(node, self.layers[node.name]) if node.name in self.layers else {}

                def read(operand: Node) -> Node:
                    return rounded[operand] if operand in rounded else self.read(node, operand)

                args, kwargs = fx.map_arg(node.args, read), fx.map_arg(node.kwargs, read)
                self.copies[node] = self.new.create_node(
                    "call_function", operator_of(node), args, kwargs, name=node.name
                )
        for spec in self.specs.get(node.name, ()):
            self.value(node, spec)

    def read(self, reader: Node, operand: Node) -> Node:
        """What a node reads of a value: the fake-quantized one where the plan says so."""
        if (reader, operand) in self.operands:
            given = (self.copies[operand], self.operands[reader, operand])
            return self.new.call_function(quantize_constant, given)
        spec = self.spec_for(reader, operand)
        return self.copies[operand] if spec is None else self.rounded[spec.value, spec.dynamic]

    def spec_for(self, reader: Node, operand: Node) -> ValueSpec | None:
        specs = self.specs.get(operand.name, ())
        return next((spec for spec in specs if not spec.readers or reader.name in spec.readers), None)

    def value(self, node: Node, spec: ValueSpec) -> None:
        copy = self.copies[node]
        if spec.dynamic:
            self.rounded[node.name, True] = self.new.call_function(
                quantize_dynamic, (copy, spec.format, spec.by_row, spec.block)
            )
        elif spec.shared and spec.shared != spec.value:
            self.rounded[node.name, False], self.scales[node.name] = copy, self.scales[spec.shared]
        else:
            name = f"{HOME}.values.{spec.value}"
            members = [node, *(self.graph.by_name[v.value] for v in self.sharing(spec))]
            self.values[name] = (spec, highest_scale(spec, upper_bound(members)))
            pair = self.new.call_module(name, (copy,))
            self.rounded[node.name, False], self.scales[node.name] = self.parts(pair)

    def sharing(self, spec: ValueSpec) -> list[ValueSpec]:
        known = (other for specs in self.specs.values() for other in specs)
        return [other for other in known if spec.shared and other.shared == spec.shared]

    def layer(self, node: Node, spec: WeightSpec) -> dict[Node, Node]:
        """The fake-quantized weight of a layer, and its bias where that becomes integers too."""
        given = arguments(node)
        weight, bias, source = given[spec.argument], given.get("bias"), node.args[0]
        assert isinstance(source, Node)
        name = f"{HOME}.weights.{spec.layer}"
        self.weights[name] = spec
        read = self.spec_for(node, source)
        scale = self.scales[source.name] if read is not None and not read.dynamic else None
        integer = "int" in spec.format and scale is not None and not spec.float_bias
        if not integer or not isinstance(bias, Node):
            return {weight: self.new.call_module(name, (self.copies[weight],))}
        pair = self.new.call_module(name, (self.copies[weight], self.copies[bias], scale))
        first, second = self.parts(pair)
        return {weight: first, bias: second}

    def parts(self, pair: Node) -> tuple[Node, Node]:
        return self.new.call_function(getitem, (pair, 0)), self.new.call_function(getitem, (pair, 1))


def check_differentiable(node: Node) -> None:
    """Refuse an op of our own that has no gradient."""
    if getattr(node.target, "namespace", "") == "qcompiler" and node.target not in DIFFERENTIABLE:
        raise PlanError(
            f"'{node.target}' cannot be trained through", node=label(node), why="it has no gradient",
            fix="train the model in float, or choose a target that computes this in parts",
        )  # fmt: skip


def highest_scale(spec: ValueSpec, bound: float | None) -> float:
    """Up to which scale a clamp's bound stays implied by the highest code."""
    format: Any = parse_format(spec.format)
    return float("inf") if bound is None else largest_step(bound, format.qmax - spec.zero_point)


def quantize_constant(tensor: Tensor, format: str) -> Tensor:
    """A constant that is read as codes, in the range of its own values."""
    return quantize_through(tensor, params_of_constant(tensor.detach(), parse_format(format)))


def quantize_dynamic(x: Tensor, format: str, by_row: bool, block: int) -> Tensor:
    """A value whose range, or that of its rows or blocks, is taken at run time: nothing of it is beyond."""
    with torch.no_grad():
        given = x.detach()
        triple = qc.quantize_rows(given, format, block) if by_row else qc.dynamic_quantize(given)
        rounded = qc.dequantize(*triple, format, *((-1, block or x.shape[-1]) if by_row else ()))
    return pass_through(x, rounded)
