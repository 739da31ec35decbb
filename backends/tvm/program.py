"""A lowered graph: memory, constants, and steps in the order in which they run.

Step = a function of ours on planes  |  codes onto a plane, or off it  |  an op that torch computes
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.backends.reference import coded, compute_region, decoded
from qcompiler.backends.tvm.plane import SPARE, Plane
from qcompiler.ir import Graph
from qcompiler.ir.graph import operator_of
from qcompiler.passes.partition import Region

qc = torch.ops.qcompiler


@dataclass(frozen=True, kw_only=True)
class Store:
    """Memory of one plane: `fill` is what its border holds."""

    plane: Plane
    dtype: str = "uint8"
    fill: int = 0
    shares: str = ""  # the store whose memory this is, by another description

    def empty(self) -> NDArray[Any]:
        return np.full(self.plane.size, self.fill, self.dtype)

    def inside(self, memory: NDArray[Any]) -> NDArray[Any]:
        """The pixels [N, H, W, C]."""
        p, b = self.plane, self.plane.border
        shape = (p.images, p.height + 2 * b, p.width + 2 * b, p.pitch)
        return memory[:-SPARE].reshape(shape)[:, b : b + p.height, b : b + p.width, : p.channels]


@dataclass(frozen=True, kw_only=True)
class State:
    """One run: memory and constants by name, as functions take them and as numpy does, and torch's values."""

    functions: Mapping[str, Any]
    handles: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    values: dict[Node, Any]


class Step(Protocol):
    """Anything that a program does, for a node."""

    @property
    def node(self) -> Node: ...

    def run(self, state: State) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Call:
    """One of our functions, on memory and constants; `regions` are what it computes, one after the other."""

    node: Node
    function: str
    arguments: tuple[str, ...]
    regions: tuple[Region, ...] = ()

    def run(self, state: State) -> None:
        state.functions[self.function](*[state.handles[name] for name in self.arguments])


@dataclass(frozen=True, kw_only=True)
class Load:
    """Floats of torch where our functions find them."""

    node: Node
    name: str

    def run(self, state: State) -> None:
        state.arrays[self.name][:] = state.values[self.node].contiguous().numpy().reshape(-1)


@dataclass(frozen=True, kw_only=True)
class Put:
    """A tensor of codes or floats, by channel or by row, onto its plane."""

    node: Node
    name: str
    store: Store

    def run(self, state: State) -> None:
        value: Any = decoded(state.values[self.node])
        self.store.inside(state.arrays[self.name])[:] = by_pixel(value.numpy())


@dataclass(frozen=True, kw_only=True)
class Take:
    """What is on a plane as a tensor of a shape."""

    node: Node
    name: str
    store: Store
    shape: tuple[int, ...]

    def run(self, state: State) -> None:
        pixels = self.store.inside(state.arrays[self.name])
        found = pixels.transpose(0, 3, 1, 2) if len(self.shape) == 4 else pixels
        state.values[self.node] = torch.from_numpy(np.array(found).reshape(self.shape))


@dataclass(frozen=True, kw_only=True)
class Mask:
    """What attention adds to its scores: of a mask that is true where to look, 0 there and -inf elsewhere."""

    node: Node
    name: str

    def run(self, state: State) -> None:
        mask = state.values[self.node].numpy()
        added = np.where(mask, np.float32(0), np.float32(-np.inf)) if mask.dtype == np.bool_ else mask
        state.arrays[self.name][:] = added.reshape(-1)


def by_pixel(codes: NDArray[Any]) -> NDArray[Any]:
    """[N, C, H, W] -> [N, H, W, C]; rows [.., K] -> [1, 1, rows, K]"""
    return codes.transpose(0, 2, 3, 1) if codes.ndim == 4 else codes.reshape(1, 1, -1, codes.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Compute:
    """An op that has no kernel of ours: torch computes it."""

    node: Node

    def run(self, state: State) -> None:
        given: Any = fx.map_arg((self.node.args, self.node.kwargs), state.values.__getitem__)
        args, kwargs = given
        if self.node.target is qc.dequantize.default:
            state.values[self.node] = coded(self.node, state.values.__getitem__)
            return
        plain = fx.node.map_aggregate((args, kwargs), decoded)
        state.values[self.node] = operator_of(self.node)(*plain[0], **plain[1])


@dataclass(frozen=True, kw_only=True)
class Refer:
    """A region that has no kernel of ours yet: the reference computes it, exactly and slowly."""

    region: Region
    graph: Graph

    @property
    def node(self) -> Node:
        return self.region.anchor

    def run(self, state: State) -> None:
        anchor = self.region.anchor
        args, kwargs = fx.map_arg((anchor.args, anchor.kwargs), state.values.__getitem__)
        residual = None if self.region.residual is None else state.values[self.region.residual]
        addend = None if self.region.addend is None else decoded(state.values[self.region.addend])
        found = compute_region(self.region, self.graph, args, kwargs, residual, addend)
        state.values[self.region.result] = found


@dataclass(frozen=True, kw_only=True)
class Program:
    """Invariant: every name in a step is a store or a constant; every value is computed before it is read."""

    stores: Mapping[str, Store]
    floats: Mapping[str, int]  # memory for floats: how many
    constants: Mapping[str, NDArray[Any]]
    functions: tuple[Any, ...]
    steps: tuple[Step, ...]
    shapes: Mapping[Node, tuple[int, ...]]
    kernels: Mapping[str, str]  # op -> the family of its kernel, "" for the reference


def tensors(graph: Graph) -> dict[Node, Tensor]:
    return {node: graph.tensors[str(node.target)] for node in graph.fx.nodes if node.op == "get_attr"}
