"""A quantized graph as a program, for the shapes of one call.

partition -> where codes lie (planes, with the border that their readers want) -> a function per layer
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import LINE, Convolution, convolution, merged, pack
from qcompiler.backends.tvm.kernels.enter import Entry, entry
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.program import Call, Compute, Load, Program, Put, Refer, Step, Store, Take
from qcompiler.backends.tvm.tiles import tile_for
from qcompiler.ir import Graph, arguments
from qcompiler.passes.partition import Region, partition
from qcompiler.target import Target

aten = torch.ops.aten
qc = torch.ops.qcompiler
CONTRACTIONS = ("conv", "linear")


def lower(graph: Graph, target: Target, shapes: Mapping[Node, tuple[int, ...]], isa: Isa) -> Program:
    """`shapes` are those of all tensors in the call that is lowered for."""
    return Lowering(graph, target, shapes, isa).program()


class Lowering:
    """One lowering under way: what has been given a place so far."""

    def __init__(
        self, graph: Graph, target: Target, shapes: Mapping[Node, tuple[int, ...]], isa: Isa
    ) -> None:
        self.graph, self.shapes, self.isa = graph, shapes, isa
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
            if is_image and self.shapes[codes][3] >= self.isa.lanes and codes not in self.on_host:
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
        layer = Entry(y=self.stores[name].plane, zero_point=self.stores[name].fill)
        if layer not in self.functions:
            self.functions[layer] = entry(layer, self.isa, f"entry_{len(self.functions)}")
        function = str(self.functions[layer].attrs["global_symbol"])
        self.floats[floats] = int(np.prod(self.shapes[codes]))
        self.constants[scale] = self.tensor(arguments(codes)["scale"]).reshape(1).numpy()
        self.steps.append(Load(node=source, name=floats))
        self.steps.append(Call(node=codes, function=function, arguments=(floats, scale, name)))

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
        if region.row.formula in CONTRACTIONS and has_constant_scales(region):
            self.contraction(region)
            return
        residual = [] if region.residual is None else [region.residual]
        for read in (*region.anchor.all_input_nodes, *residual):
            self.bring(read)
        self.steps.append(Refer(region=region, graph=self.graph))
        self.on_host.add(region.result)
        self.kernels[region.anchor.name] = ""

    def contraction(self, region: Region) -> None:
        """A convolution, or a linear as one of a single line."""
        (operand,), given = region.operands, arguments(region.anchor)
        assert region.weight is not None
        x = self.plane(operand)
        residual = None if region.residual is None else self.plane(region.residual)
        weight = self.tensor(arguments(region.weight)["q"]).numpy()
        is_linear = region.row.formula == "linear"
        wide, groups = merged(
            weight[..., None, None] if is_linear else weight, 1 if is_linear else given["groups"], self.isa
        )
        y, result = self.result(region), region.result
        layer = Convolution(
            x=self.stores[x].plane, y=self.stores[y].plane, groups=groups, to_float=not region.returns_codes,
            residual=None if residual is None else self.stores[residual].plane,
            zero_point=int(self.tensor(arguments(result)["zero_point"])) if region.returns_codes else 0,
            kernel=wide.shape[2:], **({} if is_linear else geometry(given)),
        )  # fmt: skip
        numbers = self.numbers(region, layer, wide)
        self.steps.append(
            Call(
                node=region.anchor,
                region=region,
                function=self.function(layer),
                arguments=(x, *numbers, *self.also(region, residual), y),
            )
        )
        self.kernels[region.anchor.name] = "convolution"
        if not region.returns_codes:
            shape = self.shapes[result]
            self.steps.append(Take(node=result, name=y, store=self.stores[y], shape=shape))
            self.on_host.add(result)

    def result(self, region: Region) -> str:
        """Memory for what a region returns; whole registers are written, so pixels are that far apart."""
        result = region.result
        if region.returns_codes:
            self.place(result, result)
        else:
            self.stores[result.name] = Store(plane=self.plane_of(self.shapes[result], 0), dtype="float32")
        store, lanes = self.stores[result.name], self.isa.lanes
        pitch = -(-store.plane.channels // lanes) * lanes
        self.stores[result.name] = replace(store, plane=replace(store.plane, pitch=pitch))
        return result.name

    def function(self, layer: Convolution) -> str:
        if layer not in self.functions:
            name = f"convolution_{len(self.functions)}"
            self.functions[layer] = convolution(layer, tile_for(layer, self.isa), self.isa, name)
        return str(self.functions[layer].attrs["global_symbol"])

    def numbers(self, region: Region, layer: Convolution, codes: Any) -> tuple[str, ...]:
        """Weights, bias and multiplier of a layer, as its function wants them."""
        (operand,), lanes = region.operands, self.isa.lanes
        assert region.weight is not None
        given = arguments(operand)
        outputs = len(codes)
        in_group = outputs // layer.groups
        whole = -(-in_group // lanes) * lanes
        zero = int(self.tensor(given["zero_point"]))
        bias = -zero * codes.astype(np.int64).reshape(outputs, -1).sum(1)
        if region.bias is not None:
            bias = bias + self.tensor(arguments(region.bias)["q"]).numpy()
        scale = self.tensor(given["scale"]).float() * self.tensor(arguments(region.weight)["scale"]).float()
        if region.returns_codes:
            scale = scale / self.tensor(arguments(region.result)["scale"]).float()
        multiplier = np.ones(whole * layer.groups, np.float32)
        multiplier[:outputs] = scale.expand(outputs).numpy()
        full = np.zeros(whole * layer.groups, np.int32)
        full[:outputs] = bias
        packed = np.concatenate([pack(layer, codes, self.isa).reshape(-1), np.zeros(LINE, np.int8)])
        return self.keep(region, weights=packed, bias=full, multiplier=multiplier)

    def also(self, region: Region, residual: str | None) -> tuple[str, ...]:
        """The residual and its place on the grid of the result."""
        if residual is None or region.residual is None:
            return ()
        given = arguments(region.residual)
        ratio = self.tensor(given["scale"]).float() / self.tensor(arguments(region.result)["scale"]).float()
        offset = -self.tensor(given["zero_point"]).float() * ratio
        return residual, *self.keep(region, ratio=np.array([ratio, offset], np.float32))

    def keep(self, region: Region, **arrays: Any) -> tuple[str, ...]:
        names = {kind: f"{region.anchor.name}.{kind}" for kind in arrays}
        self.constants.update({names[kind]: array for kind, array in arrays.items()})
        return tuple(names.values())


def has_constant_scales(region: Region) -> bool:
    """A range that is taken at run time has no multiplier yet."""
    return all(arguments(operand)["scale"].op == "get_attr" for operand in region.operands)


def geometry(given: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: pair(given[name]) for name in ("stride", "padding", "dilation")}


def pair(value: Any) -> tuple[int, int]:
    first, *rest = value if isinstance(value, list | tuple) else [value]
    return int(first), int(rest[0] if rest else first)


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
