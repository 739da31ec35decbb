"""A lowered graph: memory, constants, and steps in the order in which they run.

Step = a function of ours on planes  |  codes onto a plane, or off it  |  an op that torch computes
       Call                             Host: whatever Python does
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.backends.reference import coded, compute_region, decoded
from qcompiler.backends.tvm.build import ALIGNMENT
from qcompiler.backends.tvm.floatpath.step import Floats
from qcompiler.backends.tvm.plane import SPARE, Plane
from qcompiler.errors import InputError
from qcompiler.ir import Graph
from qcompiler.ir.graph import operator_of
from qcompiler.passes.partition import Region
from qcompiler.passes.profit import Fusion

qc = torch.ops.qcompiler


@dataclass(frozen=True, kw_only=True)
class Store:
    """Memory of one plane: `fill` is what its border holds; of an image [N, C, H, W], or of rows [.., K]."""

    plane: Plane
    is_image: bool = False
    dtype: str = "uint8"
    fill: int = 0
    shares: str = ""  # the store whose memory this is, by another description

    @property
    def bytes(self) -> int:
        return self.plane.size * np.dtype(self.dtype).itemsize

    def inside(self, memory: NDArray[Any]) -> NDArray[Any]:
        """The pixels [N, H, W, C]."""
        p, b = self.plane, self.plane.border
        shape = (p.images, p.height + 2 * b, p.width + 2 * b, p.pitch)
        return memory[:-SPARE].reshape(shape)[:, b : b + p.height, b : b + p.width, : p.channels]


@dataclass(frozen=True, kw_only=True)
class State:
    """One run: memory and constants by name, where functions find them, and torch's values.

    addresses, places: name -> its place in the table of addresses that functions read. functions: those that
    take torch's tensors. loaded: what lies in memory of torch, which lives as long as this.
    """

    arrays: Mapping[str, NDArray[Any]]
    values: dict[Node, Any]
    addresses: NDArray[np.int64]
    places: Mapping[str, int]
    functions: Mapping[str, Any]
    loaded: dict[str, Tensor] = field(default_factory=dict)

    def tensor(self, node: Node) -> Tensor:
        """A value of torch as functions take it."""
        return aligned(decoded(self.values[node]))

    def load(self, name: str, floats: Tensor) -> None:
        """Have functions find floats of torch under a name: the tensor itself, if a vector load may."""
        self.hold(name, aligned(floats))

    def hold(self, name: str, floats: Tensor) -> None:
        self.loaded[name] = floats
        self.addresses[self.places[name]] = floats.data_ptr()


class Step(Protocol):
    """Anything that a program does, for a node."""

    @property
    def node(self) -> Node: ...

    @property
    def memory(self) -> tuple[str, ...]:
        """The stores that it reads and writes, among other names."""
        ...


@runtime_checkable
class Host(Step, Protocol):
    """What Python does between calls."""

    def run(self, state: State) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Call:
    """One of our functions, on memory and constants; `regions` are what it computes, one after the other."""

    node: Node
    function: str
    arguments: tuple[str, ...]
    regions: tuple[Region, ...] = ()

    @property
    def memory(self) -> tuple[str, ...]:
        return self.arguments


@dataclass(frozen=True, kw_only=True)
class Moving:
    """What all steps between torch and one piece of memory have."""

    node: Node
    name: str

    @property
    def memory(self) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True, kw_only=True)
class Load(Moving):
    """Floats of torch where our functions find them."""

    def run(self, state: State) -> None:
        state.load(self.name, state.values[self.node])


@dataclass(frozen=True, kw_only=True)
class Lend(Moving):
    """New memory of torch where functions write rows that are returned, so that nobody copies them."""

    count: int
    shape: tuple[int, ...]

    def run(self, state: State) -> None:
        made = aligned(torch.empty(self.count))
        state.hold(self.name, made)
        state.values[self.node] = made[: math.prod(self.shape)].view(self.shape)


@dataclass(frozen=True, kw_only=True)
class OnPlane(Moving, ABC):
    """What all steps between torch and the pixels of a plane have: where these lie is known before a call."""

    store: Store

    def view(self, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """The pixels themselves [N, H, W, C]."""
        return self.store.inside(arrays[self.name])

    def run(self, state: State) -> None:
        self.move(self.view(state.arrays), state)

    @abstractmethod
    def move(self, view: Any, state: State) -> None:
        """Between torch and what `view` has given."""


@dataclass(frozen=True, kw_only=True)
class Put(OnPlane):
    """A tensor of codes or floats, by channel or by row, onto its plane."""

    def move(self, view: Any, state: State) -> None:
        value: Any = decoded(state.values[self.node])
        view[:] = by_pixel(value.numpy(), self.store.is_image)


@dataclass(frozen=True, kw_only=True)
class Take(OnPlane):
    """What is on a plane as a tensor of a shape."""

    shape: tuple[int, ...]

    def view(self, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """The plane itself, in that shape."""
        pixels = torch.from_numpy(super().view(arrays))
        return pixels.permute(0, 3, 1, 2).view(self.shape) if self.store.is_image else pixels.view(self.shape)

    def move(self, view: Any, state: State) -> None:
        state.values[self.node] = view.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True, kw_only=True)
class Mask(Moving):
    """What attention adds to its scores: of a mask that is true where to look, 0 there and -inf elsewhere."""

    def run(self, state: State) -> None:
        mask = state.values[self.node]
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, -math.inf)
        state.load(self.name, mask)


def aligned(floats: Tensor) -> Tensor:
    """The tensor itself if it is float32, contiguous, and where a vector load may begin; else one that is."""
    found = floats.detach().float().contiguous()
    return found if found.data_ptr() % ALIGNMENT == 0 else found.clone()


@dataclass(frozen=True, kw_only=True)
class Enter(Moving):
    """A cache of torch into memory."""

    def run(self, state: State) -> None:
        past = state.values[self.node]
        state.arrays[self.name][: past.numel()] = past.contiguous().view(-1).numpy()


@dataclass(frozen=True, kw_only=True)
class Leave(Moving):
    """A cache out of memory, as a tensor of a shape."""

    shape: tuple[int, ...]

    def run(self, state: State) -> None:
        held = state.arrays[self.name][: math.prod(self.shape)]
        state.values[self.node] = torch.from_numpy(held.reshape(self.shape).copy())


@dataclass(frozen=True, kw_only=True)
class First(Moving):
    """The first of some whole numbers, where our functions find it: a position, which they trust."""

    last: int

    def run(self, state: State) -> None:
        start = state.values[self.node].numpy().flat[0]
        if not 0 <= start <= self.last:
            raise InputError(
                f"'{self.node.name}' is {start}", why=f"the cache has room behind 0 .. {self.last}",
                fix="begin a new sequence, or compile the decoder with a larger capacity",
            )  # fmt: skip
        state.arrays[self.name][0] = start


@dataclass(frozen=True, kw_only=True)
class Gather(OnPlane):
    """Rows of a table of floats onto a plane."""

    indices: Node
    table: Node

    def view(self, arrays: Mapping[str, NDArray[Any]]) -> Any:
        return torch.from_numpy(super().view(arrays)[0, 0])

    def move(self, view: Any, state: State) -> None:
        torch.index_select(state.values[self.table], 0, state.values[self.indices].reshape(-1), out=view)


def by_pixel(codes: NDArray[Any], is_image: bool) -> NDArray[Any]:
    """[N, C, H, W] or [N, C, W] -> [N, H, W, C]; rows [.., K] -> [1, 1, rows, K]"""
    if is_image:
        return (codes[:, :, None] if codes.ndim == 3 else codes).transpose(0, 2, 3, 1)
    return codes.reshape(1, 1, -1, codes.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Compute:
    """An op that has no kernel of ours: torch computes it.

    shape: of a reshape, where all sizes are known. names: it only names memory that was lent, written or not.
    """

    node: Node
    shape: tuple[int, ...] | None = None
    names: bool = False

    @property
    def memory(self) -> tuple[str, ...]:
        return ()

    def run(self, state: State) -> None:
        if self.shape is not None:
            whole: Any = decoded(state.values[self.node.all_input_nodes[0]])
            state.values[self.node] = whole.reshape(self.shape)
            return
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

    @property
    def memory(self) -> tuple[str, ...]:
        return ()

    def run(self, state: State) -> None:
        anchor = self.region.anchor
        args, kwargs = fx.map_arg((anchor.args, anchor.kwargs), state.values.__getitem__)
        residual = None if self.region.residual is None else state.values[self.region.residual]
        addend = None if self.region.addend is None else decoded(state.values[self.region.addend])
        found = compute_region(self.region, self.graph, args, kwargs, residual, addend)
        state.values[self.region.result] = found


@dataclass(frozen=True, kw_only=True)
class Program:
    """Invariant: every name in a step is a store, a constant, or what an earlier step has loaded; every value
    is computed before it is read."""

    stores: Mapping[str, Store]
    constants: Mapping[str, NDArray[Any]]
    functions: tuple[Any, ...]
    steps: tuple[Step, ...]
    shapes: Mapping[Node, tuple[int, ...]]
    kernels: Mapping[str, str]  # op -> the family of its kernel, "" for the reference
    fusions: tuple[Fusion, ...] = ()  # those that were weighed


def alive(steps: Sequence[Step], returned: Iterable[Node]) -> tuple[Step, ...]:
    """Without what torch would compute and nobody reads: shapes, where a view is only a name."""
    read, kept = set(returned), []
    for step in reversed(steps):
        if not isinstance(step, Compute) or step.node in read:
            read.update(reads(step))
            kept.append(step)
    return tuple(reversed(kept))


def early(steps: Sequence[Step]) -> tuple[Step, ...]:
    """First what only wants the inputs of a call, so that calls stand side by side."""
    return tuple(sorted(steps, key=lambda step: not is_at_once(step)))


def is_at_once(step: Step) -> bool:
    if isinstance(step, Lend) or (isinstance(step, Compute) and step.names):
        return True
    given = step.node.all_input_nodes if isinstance(step, Gather) else [step.node]
    enters = isinstance(step, Moving) and not isinstance(step, Take | Leave)
    return enters and all(node.op in ("placeholder", "get_attr") for node in given)


def reads(step: Step) -> tuple[Node, ...]:
    """The values of torch that a step may look at."""
    match step:
        case Call() | Lend():
            return ()
        case Compute(shape=shape) if shape is not None:
            return (step.node, step.node.all_input_nodes[0])
        case Refer(region=region):
            more = [node for node in (region.residual, region.addend) if node is not None]
            return (step.node, *more, *step.node.all_input_nodes)
        case Floats(group=group):
            return group.inputs
    return (step.node, *step.node.all_input_nodes)


def tensors(graph: Graph) -> dict[Node, Tensor]:
    return {node: graph.tensors[str(node.target)] for node in graph.fx.nodes if node.op == "get_attr"}
