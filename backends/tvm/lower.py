"""A quantized graph as a program, for the shapes of one call.

partition -> where codes lie (planes, with the border that their readers want) -> a function per layer
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.tvm import fusions
from qcompiler.backends.tvm.families import FAMILIES
from qcompiler.backends.tvm.families.base import Layer, pair
from qcompiler.backends.tvm.floatpath.steps import computed, with_functions
from qcompiler.backends.tvm.floats import FLOATS, encoded
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.edge import decode, encode
from qcompiler.backends.tvm.layout import RESHAPES, images
from qcompiler.backends.tvm.lent import Lent
from qcompiler.backends.tvm.plane import GRAIN, Plane, pitch_of
from qcompiler.backends.tvm.program import (
    Call,
    Compute,
    Enter,
    First,
    Gather,
    Leave,
    Lend,
    Load,
    Mask,
    Program,
    Put,
    Refer,
    Step,
    Store,
    Take,
    alive,
    early,
)
from qcompiler.backends.tvm.ranges import floats_of, ranged
from qcompiler.backends.tvm.schedules import Choose, Schedules, measured_by
from qcompiler.ir import Graph, arguments, spec
from qcompiler.passes.partition import Region, partition, sums_of_floats
from qcompiler.passes.profit import Fusion, pays
from qcompiler.rewrite import Trait, has
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


class Lowering:
    """One lowering under way: what has been given a place so far."""

    def __init__(
        self, graph: Graph, target: Target, shapes: Mapping[Node, tuple[int, ...]], isa: Isa, choose: Choose
    ) -> None:
        self.graph, self.target, self.shapes, self.isa, self.choose = graph, target, shapes, isa, choose
        self.regions = partition(graph, target)
        self.images = images(graph, self.regions.values(), shapes)
        self.borders = borders(self.regions.values())
        self.fusions = list(sums_of_floats(self.regions.values(), target))
        self.stores: dict[str, Store] = {}
        self.constants: dict[str, Any] = {}
        self.functions: dict[Any, Any] = {}  # layer, tile -> function: equal layers share one
        self.steps: list[Step] = []
        self.kernels: dict[str, str] = {}
        self.on_plane: dict[Node, str] = {}  # codes or floats -> the store that holds them
        self.on_host: set[Node] = set()
        self.caches: dict[Node, str] = {}  # what attention has written into -> the store that holds it
        self.masks: set[str] = set()
        self.lent = Lent(graph=graph)
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
            stores=self.lent.others(self.stores),
            constants=self.constants, functions=tuple(self.functions.values()),
            steps=early(steps), shapes=self.shapes, kernels={**self.kernels, **computed(steps)},
            fusions=tuple(self.fusions),
        )  # fmt: skip

    # ---------------------------------------------------------------- values

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
        elif (alias := self.alias(node)) is not None:
            self.stores[node.name] = alias
            self.on_plane[node] = node.name
        else:
            shape = self.shapes[node] if node.target in RESHAPES else None
            for read in node.all_input_nodes[: None if shape is None else 1]:
                self.bring(read)
            self.steps.append(Compute(node=node, shape=shape, names=self.lent.names(node)))
            self.on_host.add(node)

    def alias(self, node: Node) -> Store | None:
        """Another description of the same memory: rows of other rank, or images of one pixel as rows."""
        read: Any = node.args[0] if has(node, Trait.MOVES_DATA) else None
        if read not in self.on_plane or read in self.lent.values:
            return None
        name = self.on_plane[read]
        store, before, after = self.stores[name], self.shapes[read], self.shapes[node]
        if store.plane.border or self.borders.get(node) or not after:
            return None  # who reads it as it is named here wants a border
        if read in self.images and set(before[2:]) == {1} and after == before[:2]:
            plane = replace(store.plane, images=1, width=store.plane.images)
        elif {read, node} <= self.images and is_reshape(node, before) and sizes(before) == sizes(after):
            return replace(store, shares=store.shares or name)
        elif is_reshape(node, before) and not {read, node} & self.images and before[-1] == after[-1]:
            plane = store.plane
        else:
            return None
        return replace(store, plane=plane, is_image=False, shares=store.shares or name)

    def bring(self, node: Node) -> None:
        """Have a value as a tensor of torch."""
        if node in self.on_host:
            return
        if node in self.caches:
            self.steps.append(Leave(node=node, name=self.caches[node], shape=self.shapes[node]))
        elif node not in self.on_plane:
            for read in node.all_input_nodes:
                self.bring(read)
            self.steps.append(Compute(node=node))
        else:
            name = self.on_plane[node]
            self.steps.append(Take(node=node, name=name, store=self.stores[name], shape=self.shapes[node]))
        self.on_host.add(node)

    def known(self, value: Node, *, before: Node) -> bool:
        """Whether a value is floats that can lie by row, and is computed before a node."""
        held = spec(value)
        is_rows = (
            held is not None
            and held.dtype == torch.float32
            and len(held.shape) > 0
            and value not in self.images
        )
        return is_rows and value < before

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
                name = self.place(codes, decoded)
                self.steps.append(Put(node=codes, name=name, store=self.stores[name]))
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
        store, count = self.stores[name], int(np.prod(self.shapes[value]))
        if not store.is_image or given["axis"] is not None or given["scale"].op != "get_attr":
            self.bring(value)
            return
        plane, zero = store.plane, int(self.tensor(given["zero_point"]))
        function = self.function(("decode", plane, zero), lambda made: decode(plane, zero, self.isa, made))
        self.constants[scale] = self.tensor(given["scale"]).reshape(1).numpy()
        flat = Plane(images=1, height=1, width=1, channels=count, pitch=count)
        self.steps.append(Lend(node=value, name=value.name, plane=flat, shape=self.shapes[value]))
        self.steps.append(Call(node=value, function=function, arguments=(name, scale, value.name)))
        self.on_host.add(value)

    def rows(self, value: Node) -> str:
        """Have a float value on a plane, by row."""
        if value not in self.on_plane:
            self.bring(value)
            self.float_rows(value)
            name = value.name
            self.steps.append(Put(node=value, name=name, store=self.stores[name]))
        return self.on_plane[value]

    def float_rows(self, value: Node) -> Plane:
        """Memory for a float value, by row; whole registers are written."""
        plane = self.plane_of(value, 0)
        plane = replace(plane, pitch=pitch_of(plane.channels))
        self.stores[value.name] = Store(plane=plane, dtype="float32", is_image=value in self.images)
        self.on_plane[value] = value.name
        is_made = value not in self.on_host and value not in self.images and not is_embedding(value)
        if is_made and self.lent.lend(value, plane):
            self.steps.append(Lend(node=value, name=value.name, plane=plane, shape=self.shapes[value]))
            self.on_host.add(value)
        return plane

    def hold(self, name: str, plane: Plane, dtype: str) -> None:
        """Memory that belongs to no value."""
        self.stores[name] = Store(plane=plane, dtype=dtype)

    def keep(self, value: Node, plane: Plane, dtype: str) -> None:
        """Memory of a value, on a plane that is given."""
        self.hold(value.name, plane, dtype)
        self.on_plane[value] = value.name

    def cached(self, past: Node, plane: Plane, cache: Sequence[Node]) -> str:
        """Have a cache in memory, where it becomes the one that is returned."""
        name = f"{past.name}.cache"
        self.bring(past)
        self.hold(name, plane, "float32")
        self.steps.append(Enter(node=past, name=name))
        self.caches.update((node, name) for node in cache)
        return name

    def first(self, value: Node, plane: Plane, last: int) -> str:
        """Have the first of some whole numbers in memory, which is 0 .. last."""
        value = self.start_of(value)
        name = f"{value.name}.first.{last}"
        if name not in self.stores:
            self.bring(value)
            self.hold(name, plane, "int32")
            self.steps.append(First(node=value, name=name, last=last))
        return name

    def start_of(self, value: Node) -> Node:
        """start + (0, 1, ..) begins with start."""
        if value.target is not aten.add.Tensor or arguments(value)["alpha"] != 1:
            return value
        counts = [x for x in value.all_input_nodes if self.counts_from_zero(x)]
        others = [x for x in value.all_input_nodes if x not in counts and self.shapes.get(x) == ()]
        return others[0] if counts and others else value

    def counts_from_zero(self, node: Node) -> bool:
        if node.op == "get_attr":
            held = self.tensor(node)
            return held.dim() == 1 and torch.equal(held, torch.arange(len(held), dtype=held.dtype))
        return node.target is aten.arange.default

    def embed(self, node: Node) -> None:
        """Rows of a constant table, copied to where our functions read them."""
        given = arguments(node)
        self.bring(given["indices"])
        self.float_rows(node)
        self.steps.append(
            Gather(
                node=node, indices=given["indices"], table=given["weight"], name=node.name,
                store=self.stores[node.name],
            )
        )  # fmt: skip

    def mask(self, value: Node) -> str:
        """Have what attention adds to its scores in memory."""
        name = f"{value.name}.added"
        if name not in self.masks:
            self.bring(value)
            self.masks.add(name)
            self.steps.append(Mask(node=value, name=name))
        return name

    def place(self, codes: Node, pair: Node) -> str:
        """Memory for codes; its border holds the zero point, which is what padding stands for."""
        zero = int(self.tensor(arguments(pair)["zero_point"]))
        plane = self.plane_of(codes, self.borders.get(codes, 0))
        self.stores[codes.name] = Store(plane=plane, fill=zero, is_image=codes in self.images)
        self.on_plane[codes] = codes.name
        return codes.name

    def plane_of(self, value: Node, border: int) -> Plane:
        images, channels, height, width = as_image(self.shapes[value], value in self.images)
        pitch = channels if channels < GRAIN else pitch_of(channels)
        return Plane(images=images, height=height, width=width, channels=channels, pitch=pitch, border=border)

    def tensor(self, node: Any) -> Tensor:
        return self.graph.tensors[str(node.target)]

    # ---------------------------------------------------------------- regions

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

    def result(self, region: Region) -> Plane:
        """Memory for what a region returns; whole registers are written, so pixels are that far apart."""
        result = region.result
        if not region.returns_codes:
            return self.float_rows(result)
        self.place(result, result)
        store = self.stores[result.name]
        plane = replace(store.plane, pitch=pitch_of(store.plane.channels))
        self.stores[result.name] = replace(store, plane=plane)
        return plane

    def function(self, description: Any, make: Callable[[str], Any]) -> str:
        """The name of the function for a layer; equal layers share one."""
        if description not in self.functions:
            self.functions[description] = make(f"function_{len(self.functions)}")
        return str(self.functions[description].attrs["global_symbol"])


def is_embedding(node: Node) -> bool:
    """Whether a node looks up rows of a constant."""
    return node.target is aten.embedding.default and arguments(node)["weight"].op == "get_attr"


def is_reshape(node: Node, before: Sequence[int]) -> bool:
    """Whether only the name of a place changes: the one index of an axis selected is a reshape, too."""
    if node.target is aten.select.int:
        return bool(before[arguments(node)["dim"]] == 1)
    return node.target in RESHAPES


def only_reader(node: Node | None) -> Node | None:
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def has_known_scales(region: Region) -> bool:
    """Of a range that is taken at run time a linear alone can make use."""
    known = (arguments(operand)["scale"].op == "get_attr" for operand in region.operands)
    return all(known) or (region.row.formula == "linear" and floats_of(region.operands[0]) is not None)


def sizes(image: Sequence[int]) -> tuple[int, int, int, int]:
    """[N, C, H, W] and [N, C, W] as four numbers."""
    return image[0], image[1], image[2] if len(image) == 4 else 1, image[-1]


def as_image(shape: Sequence[int], is_image: bool) -> tuple[int, int, int, int]:
    """[N, C, H, W] as it is, and [N, C, W] of a single line; rows [.., K] as one image of a single line."""
    if is_image:
        return sizes(shape)
    return 1, shape[-1], 1, int(np.prod(shape[:-1]))


def borders(regions: Any) -> dict[Node, int]:
    """Codes -> the widest padding among the convolutions that read them."""
    found: dict[Node, int] = {}
    for region in regions:
        if region.row.formula == "conv":
            codes = region.operands[0].args[0]
            found[codes] = max(found.get(codes, 0), *pair(arguments(region.anchor)["padding"]))
    return found
