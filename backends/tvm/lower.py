"""A quantized graph as a program, for the shapes of one call.

partition -> node by node: a function for what a family takes, torch or the reference for the rest
             (where values lie is decided in `layout`, and where they are by now is known in `values`)
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node

from qcompiler.backends.tvm import fusions
from qcompiler.backends.tvm.families import FAMILIES
from qcompiler.backends.tvm.families.base import Layer
from qcompiler.backends.tvm.floatpath.steps import computed, with_functions
from qcompiler.backends.tvm.floats import FLOATS, encoded
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.edge import decode, encode
from qcompiler.backends.tvm.layout import RESHAPES
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.program import Call, Compute, Load, Program, Refer, Step, alive, early
from qcompiler.backends.tvm.ranges import floats_of, ranged
from qcompiler.backends.tvm.schedules import Choose, Schedules, measured_by
from qcompiler.backends.tvm.values import Values
from qcompiler.ir import Graph, arguments
from qcompiler.passes.partition import Region, partition, sums_of_floats
from qcompiler.passes.profit import Fusion, pays
from qcompiler.target import Target

aten = torch.ops.aten
qc = torch.ops.qcompiler

# Ops that are computed only if somebody wants their result by itself: a kernel may take them along.
WAITING = (
    qc.quantize.default, qc.dequantize.default, qc.dynamic_quantize.default, aten.silu.default,
    aten.split_with_sizes.default, operator.getitem,
)  # fmt: skip


def lower(
    graph: Graph, target: Target, shapes: Mapping[Node, tuple[int, ...]], isa: Isa,
    choose: Choose | None = None,
) -> Program:  # fmt: skip
    """`shapes` are those of all tensors in the call that is lowered for; `choose` gives layers schedules."""
    return Lowering(graph, target, shapes, isa, choose or Schedules(isa=isa)).program()


def lowered_steps(
    graph: Graph, target: Target, shapes: Mapping[Node, tuple[int, ...]], isa: Isa, choose: Choose
) -> tuple[Step, ...]:
    """What a program does before ops of torch become functions."""
    return Lowering(graph, target, shapes, isa, choose).planned()


class Lowering(Values):
    """One lowering under way: what computes each node, with what has been given a place so far."""

    def __init__(
        self, graph: Graph, target: Target, shapes: Mapping[Node, tuple[int, ...]], isa: Isa, choose: Choose
    ) -> None:
        self.regions = partition(graph, target)
        super().__init__(graph, tuple(self.regions.values()), shapes)
        self.target, self.isa, self.choose = target, isa, choose
        self.fusions = list(sums_of_floats(self.regions.values(), target))
        self.constants: dict[str, Any] = {}
        self.functions: dict[Any, Any] = {}  # layer, tile -> function: equal layers share one
        self.kernels: dict[str, str] = {}
        self.computed: set[Region] = set()  # by a kernel that computes another as well

    def planned(self) -> tuple[Step, ...]:
        inside = {
            node for region in self.regions.values() for node in (region.anchor, *region.chain, region.result)
        }
        for node in self.graph.fx.nodes:
            region = self.regions.get(node)
            if region is not None:
                self.region(region)
            elif node.op == "call_function" and node not in inside:
                self.plain(node)
            elif node.op in ("placeholder", "get_attr"):
                self.on_host.add(node)
            elif node.op == "output":
                for read in node.all_input_nodes:
                    self.give(read)
        return alive(self.steps, self.graph.output.all_input_nodes)

    def program(self) -> Program:
        steps = with_functions(
            self.planned(), self.graph.output.all_input_nodes, self.shapes, measured_by(self.choose),
            self.function,
        )  # fmt: skip
        return Program(
            stores=self.lent.others(self.stores), constants=self.constants,
            functions=tuple(self.functions.values()),
            steps=early(steps), shapes=self.shapes, kernels={**self.kernels, **computed(steps)},
            fusions=tuple(self.fusions),
        )  # fmt: skip

    # ---------------------------------------------------------------- nodes

    def region(self, region: Region) -> None:
        """By the family of its formula, or by the reference where none takes it."""
        if region in self.computed:
            return
        family = FAMILIES.get(region.row.formula)
        layer = family(self, region) if family is not None and has_known_scales(region) else None
        if layer is not None:
            self.call(region.anchor, layer)
            return
        self.kernels[region.anchor.name] = ""
        more = [node for node in (region.residual, region.addend) if node is not None]
        for read in (*region.anchor.all_input_nodes, *more):
            self.bring(read)
        self.steps.append(Refer(region=region, graph=self.graph))
        self.on_host.add(region.result)

    def plain(self, node: Node) -> None:
        """An op outside all regions."""
        if node.target in WAITING or node in self.on_plane or node in self.caches:
            return
        if is_embedding(node) and self.known(node, before=self.graph.output):
            self.embed(node)
            return
        family = FLOATS.get(node.target)
        layer = family(self, node) if family is not None else None
        if layer is not None:
            self.call(node, layer)
        elif not self.alias(node):
            shape = self.shapes[node] if node.target in RESHAPES else None
            for read in node.all_input_nodes[: None if shape is None else 1]:
                self.bring(read)
            self.steps.append(Compute(node=node, shape=shape, names=self.lent.names(node)))
            self.on_host.add(node)

    def plane(self, decoded: Node) -> str:
        """Have the codes that a dequantize reads on a plane."""
        codes = decoded.args[0]
        assert isinstance(codes, Node)
        if codes not in self.on_plane:
            is_image = codes.target is qc.quantize.default and codes in self.images
            if (layer := ranged(self, decoded)) is not None:
                self.call(decoded, layer)
            elif is_image and codes not in self.on_host:
                self.enter(codes)
            elif codes not in self.on_host and (layer := encoded(self, codes)) is not None:
                self.call(codes, layer)
            else:
                self.bring(codes)
                self.place(codes, decoded)
                self.put(codes)
        return self.on_plane[codes]

    def enter(self, codes: Node) -> None:
        """Quantize an image of floats onto its plane."""
        source = codes.args[0]
        assert isinstance(source, Node)
        self.bring(source)
        name, floats, scale = self.place(codes, codes), f"{codes.name}.floats", f"{codes.name}.scale"
        plane, zero = self.stores[name].plane, self.stores[name].fill
        function = self.function(("encode", plane, zero), lambda made: encode(plane, zero, self.isa, made))
        self.constants[scale] = self.tensor(arguments(codes)["scale"]).reshape(1).numpy()
        self.steps.append(Load(node=source, name=floats))
        self.steps.append(Call(node=codes, function=function, arguments=(floats, scale, name)))

    def give(self, value: Node) -> None:
        """Have a result as a tensor: an image of codes is decoded and sorted by channel in one pass."""
        codes: Any = value.args[0] if value.target is qc.dequantize.default else None
        if value in self.on_host or codes in self.on_host or codes not in self.on_plane:
            self.bring(value)
            return
        name, given, scale = self.on_plane[codes], arguments(value), f"{value.name}.scale"
        store, count = self.stores[name], math.prod(self.shapes[value])
        if not store.is_image or given["axis"] is not None or given["scale"].op != "get_attr":
            self.bring(value)
            return
        plane, zero = store.plane, int(self.tensor(given["zero_point"]))
        function = self.function(("decode", plane, zero), lambda made: decode(plane, zero, self.isa, made))
        self.constants[scale] = self.tensor(given["scale"]).reshape(1).numpy()
        self.lend(value, Plane(images=1, height=1, width=1, channels=count, pitch=count))
        self.steps.append(Call(node=value, function=function, arguments=(name, scale, value.name)))

    # ---------------------------------------------------------------- calls

    def call(self, node: Node, layer: Layer) -> None:
        function = self.function(layer.description, layer.make)
        self.constants.update(layer.constants)
        self.computed.update(layer.regions)
        computed = [region.anchor for region in layer.regions] or [node]
        self.kernels.update((anchor.name, layer.kernel) for anchor in computed)
        self.steps.append(
            Call(
                node=node, regions=layer.regions, function=function,
                arguments=(*layer.arguments, *layer.results),
            )
        )  # fmt: skip

    def function(self, description: Any, make: Callable[[str], Any]) -> str:
        """The name of the function for a layer; equal layers share one."""
        if description not in self.functions:
            self.functions[description] = make(f"function_{len(self.functions)}")
        return str(self.functions[description].attrs["global_symbol"])

    def pays(self, fusion: Fusion | None) -> bool:
        """Whether a fusion is worth it; what was weighed is kept for the report."""
        if fusion is not None:
            self.fusions.append(fusion)
        return pays(fusion)

    def table_behind(self, region: Region, alone: Any) -> Region | None:
        """The function of one code that alone reads what a region returns, if it pays to look it up at once.

        alone: the layer without it.
        """
        if self.isa.lookup is None or not region.returns_codes:
            return None
        reader = only_reader(only_reader(region.result))
        behind = next((r for r in self.regions.values() if r.anchor is reader), None)
        if behind is None or behind.row.formula != "unary":
            return None
        return behind if self.pays(fusions.table_behind(self, region, behind, alone)) else None


def is_embedding(node: Node) -> bool:
    """Whether a node looks up rows of a constant."""
    return node.target is aten.embedding.default and arguments(node)["weight"].op == "get_attr"


def only_reader(node: Node | None) -> Node | None:
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def has_known_scales(region: Region) -> bool:
    """Of a range that is taken at run time a linear alone can make use."""
    known = (arguments(operand)["scale"].op == "get_attr" for operand in region.operands)
    return all(known) or (region.row.formula == "linear" and floats_of(region.operands[0]) is not None)
