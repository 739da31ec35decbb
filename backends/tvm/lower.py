"""A quantized graph as a program, for the shapes of one call.

partition -> where codes lie (planes, with the border that their readers want) -> a function per layer
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.tvm.families import FAMILIES, pair
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.edge import encode
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.program import Call, Compute, Load, Program, Put, Refer, Step, Store, Take
from qcompiler.backends.tvm.schedules import Choose, Schedules
from qcompiler.ir import Graph, arguments
from qcompiler.passes.partition import Region, partition
from qcompiler.rewrite import Trait, has
from qcompiler.target import Target

aten = torch.ops.aten
qc = torch.ops.qcompiler


def lower(
    graph: Graph, target: Target, shapes: Mapping[Node, tuple[int, ...]], isa: Isa,
    choose: Choose | None = None,
) -> Program:  # fmt: skip
    """`shapes` are those of all tensors in the call that is lowered for; `choose` gives layers schedules."""
    return Lowering(graph, target, shapes, isa, choose or Schedules(isa=isa)).program()


class Lowering:
    """One lowering under way: what has been given a place so far."""

    def __init__(
        self, graph: Graph, target: Target, shapes: Mapping[Node, tuple[int, ...]], isa: Isa, choose: Choose
    ) -> None:
        self.graph, self.shapes, self.isa, self.choose = graph, shapes, isa, choose
        self.regions = partition(graph, target)
        self.borders = borders(self.regions.values())
        self.stores: dict[str, Store] = {}
        self.constants: dict[str, Any] = {}
        self.floats: dict[str, int] = {}
        self.functions: dict[Any, Any] = {}  # layer, tile -> function: equal layers share one
        self.steps: list[Step] = []
        self.kernels: dict[str, str] = {}
        self.on_plane: dict[Node, str] = {}  # codes -> the store that holds them
        self.on_host: set[Node] = set()

    def program(self) -> Program:
        inside = {
            node for region in self.regions.values() for node in (region.anchor, *region.chain, region.result)
        }
        for node in self.graph.fx.nodes:
            region = self.regions.get(node)
            if region is not None:
                self.region(region)
            elif node.op == "call_function" and node not in inside:
                self.host(node)
            elif node.op in ("placeholder", "get_attr"):
                self.on_host.add(node)
            elif node.op == "output":
                for read in node.all_input_nodes:
                    self.bring(read)
        return Program(
            stores=self.stores, floats=self.floats, constants=self.constants,
            functions=tuple(self.functions.values()),
            steps=tuple(self.steps), kernels=self.kernels,
        )  # fmt: skip

    # ---------------------------------------------------------------- values

    def host(self, node: Node) -> None:
        """Let torch compute an op; coding and decoding wait until somebody reads the result."""
        if node.target in (qc.quantize.default, qc.dequantize.default):
            return
        read: Any = node.args[0] if has(node, Trait.MOVES_DATA) else None
        if read in self.on_plane and self.is_rows(node, read):
            self.stores[node.name] = replace(
                self.stores[self.on_plane[read]], plane=self.rows_of(read), shares=self.on_plane[read]
            )
            self.on_plane[node] = node.name
            return
        for read in node.all_input_nodes:
            self.bring(read)
        self.steps.append(Compute(node=node))
        self.on_host.add(node)

    def bring(self, node: Node) -> None:
        """Have a value as a tensor of torch."""
        if node in self.on_host:
            return
        if node not in self.on_plane:
            for read in node.all_input_nodes:
                self.bring(read)
            self.steps.append(Compute(node=node))
        else:
            name = self.on_plane[node]
            self.steps.append(Take(node=node, name=name, store=self.stores[name], shape=self.shapes[node]))
        self.on_host.add(node)

    def plane(self, decoded: Node) -> str:
        """Have the codes that a dequantize reads on a plane."""
        codes = decoded.args[0]
        assert isinstance(codes, Node)
        if codes not in self.on_plane:
            is_image = codes.target is qc.quantize.default and len(self.shapes[codes]) == 4
            if is_image and codes not in self.on_host:
                self.enter(codes)
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
        self.floats[floats] = int(np.prod(self.shapes[codes]))
        self.constants[scale] = self.tensor(arguments(codes)["scale"]).reshape(1).numpy()
        self.steps.append(Load(node=source, name=floats))
        self.steps.append(Call(node=codes, function=function, arguments=(floats, scale, name)))

    def is_rows(self, node: Node, read: Any) -> bool:
        """Whether images of one pixel are only called rows: [N, C, 1, 1] -> [N, C]"""
        before, after = self.shapes[read], self.shapes[node]
        borderless = not self.stores[self.on_plane[read]].plane.border
        return borderless and before[2:] == (1, 1) and after == before[:2]

    def rows_of(self, read: Any) -> Plane:
        plane = self.stores[self.on_plane[read]].plane
        return replace(plane, images=1, width=plane.images)

    def place(self, codes: Node, pair: Node) -> str:
        """Memory for codes; its border holds the zero point, which is what padding stands for."""
        zero = int(self.tensor(arguments(pair)["zero_point"]))
        plane = self.plane_of(self.shapes[codes], self.borders.get(codes, 0))
        self.stores[codes.name] = Store(plane=plane, fill=zero)
        self.on_plane[codes] = codes.name
        return codes.name

    def plane_of(self, shape: Sequence[int], border: int) -> Plane:
        images, channels, height, width = as_image(shape)
        pitch = channels if channels < self.isa.lanes else -(-channels // self.isa.lanes) * self.isa.lanes
        return Plane(images=images, height=height, width=width, channels=channels, pitch=pitch, border=border)

    def tensor(self, node: Any) -> Tensor:
        return self.graph.tensors[str(node.target)]

    # ---------------------------------------------------------------- regions

    def region(self, region: Region) -> None:
        """By the family of its formula, or by the reference where none takes it."""
        family = FAMILIES.get(region.row.formula)
        layer = family(self, region) if family is not None and has_constant_scales(region) else None
        self.kernels[region.anchor.name] = "" if layer is None else layer.kernel
        if layer is None:
            self.refer(region)
            return
        y = region.result.name
        self.constants.update(layer.constants)
        function = self.function(layer.description, layer.make)
        self.steps.append(
            Call(node=region.anchor, region=region, function=function, arguments=(*layer.arguments, y))
        )
        if not region.returns_codes:
            self.steps.append(
                Take(node=region.result, name=y, store=self.stores[y], shape=self.shapes[region.result])
            )
            self.on_host.add(region.result)

    def refer(self, region: Region) -> None:
        residual = [] if region.residual is None else [region.residual]
        for read in (*region.anchor.all_input_nodes, *residual):
            self.bring(read)
        self.steps.append(Refer(region=region, graph=self.graph))
        self.on_host.add(region.result)

    def result(self, region: Region) -> Plane:
        """Memory for what a region returns; whole registers are written, so pixels are that far apart."""
        result = region.result
        if region.returns_codes:
            self.place(result, result)
        else:
            self.stores[result.name] = Store(plane=self.plane_of(self.shapes[result], 0), dtype="float32")
        store, lanes = self.stores[result.name], self.isa.lanes
        plane = replace(store.plane, pitch=-(-store.plane.channels // lanes) * lanes)
        self.stores[result.name] = replace(store, plane=plane)
        return plane

    def function(self, description: Any, make: Callable[[str], Any]) -> str:
        """The name of the function for a layer; equal layers share one."""
        if description not in self.functions:
            self.functions[description] = make(f"function_{len(self.functions)}")
        return str(self.functions[description].attrs["global_symbol"])


def has_constant_scales(region: Region) -> bool:
    """A range that is taken at run time has no multiplier yet."""
    return all(arguments(operand)["scale"].op == "get_attr" for operand in region.operands)


def as_image(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """[N, C, H, W] as it is; rows [.., K] as one image of a single line."""
    if len(shape) == 4:
        return shape[0], shape[1], shape[2], shape[3]
    return 1, shape[-1], 1, int(np.prod(shape[:-1]))


def borders(regions: Any) -> dict[Node, int]:
    """Codes -> the widest padding among the convolutions that read them."""
    found: dict[Node, int] = {}
    for region in regions:
        if region.row.formula == "conv":
            codes = region.operands[0].args[0]
            found[codes] = max(found.get(codes, 0), *pair(arguments(region.anchor)["padding"]))
    return found
