"""Where every value is by now, while a graph is lowered: on a plane, in a cache, or with torch.

rows, embed, mask, first, cached    have a value where kernels read it
bring                               have it as a tensor of torch
place, float_rows, hold, keep       memory for what a kernel returns; lend: memory of torch for it
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.tvm.layout import Layout, layout
from qcompiler.backends.tvm.lent import Lent
from qcompiler.backends.tvm.plane import Plane, pitch_of
from qcompiler.backends.tvm.program import (
    Compute,
    Enter,
    First,
    Gather,
    Leave,
    Lend,
    Mask,
    Put,
    Step,
    Store,
    Take,
)
from qcompiler.ir import Graph, arguments, spec
from qcompiler.passes.partition import Region
from qcompiler.rewrite import Trait, has

aten = torch.ops.aten


class Values:
    """What has been given a place so far, and the steps that brought it there."""

    def __init__(
        self, graph: Graph, regions: Collection[Region], shapes: Mapping[Node, tuple[int, ...]]
    ) -> None:
        self.graph, self.shapes = graph, shapes
        self.layout: Layout = layout(graph, regions, shapes)
        self.images = self.layout.images
        self.stores: dict[str, Store] = {}
        self.steps: list[Step] = []
        self.on_plane: dict[Node, str] = {}  # codes or floats -> the store that holds them
        self.on_host: set[Node] = set()
        self.caches: dict[Node, str] = {}  # what attention has written into -> the store that holds it
        self.masks: set[str] = set()
        self.lent = Lent(graph=graph)

    def tensor(self, node: Any) -> Tensor:
        return self.graph.tensors[str(node.target)]

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

    # ---------------------------------------------------------------- to torch

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

    # ---------------------------------------------------------------- to kernels

    def alias(self, node: Node) -> bool:
        """Have a value that is another description of the same memory under its own name; whether it is."""
        read: Any = node.args[0] if has(node, Trait.MOVES_DATA) else None
        if read not in self.on_plane or read in self.lent.values:
            return False
        name = self.on_plane[read]
        store = self.layout.alias(node, read, name, self.stores[name])
        if store is not None:
            self.stores[node.name], self.on_plane[node] = store, node.name
        return store is not None

    def rows(self, value: Node) -> str:
        """Have a float value on a plane, by row."""
        if value not in self.on_plane:
            self.bring(value)
            self.by_row(value)
            self.put(value)
        return self.on_plane[value]

    def put(self, value: Node) -> None:
        """From torch onto the plane that it has."""
        name = self.on_plane[value]
        self.steps.append(Put(node=value, name=name, store=self.stores[name]))

    def embed(self, node: Node) -> None:
        """Rows of a constant table, copied to where our functions read them."""
        given = arguments(node)
        self.bring(given["indices"])
        self.by_row(node)
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

    # ---------------------------------------------------------------- memory for results

    def place(self, codes: Node, pair: Node) -> str:
        """Memory for codes; its border holds the zero point, which is what padding stands for."""
        zero = int(self.tensor(arguments(pair)["zero_point"]))
        plane = self.plane_of(codes, self.layout.borders.get(codes, 0))
        self.stores[codes.name] = Store(plane=plane, fill=zero, is_image=codes in self.images)
        self.on_plane[codes] = codes.name
        return codes.name

    def plane_of(self, value: Node, border: int) -> Plane:
        return self.layout.plane_of(value, border)

    def result(self, region: Region) -> Plane:
        """Memory for what a region returns; whole registers are written, so pixels are that far apart."""
        result = region.result
        if not region.returns_codes:
            return self.float_rows(result)
        store = self.stores[self.place(result, result)]
        plane = replace(store.plane, pitch=pitch_of(store.plane.channels))
        self.stores[result.name] = replace(store, plane=plane)
        return plane

    def float_rows(self, value: Node) -> Plane:
        """Memory for floats that a kernel makes, by row; torch's own, where they are returned as they are."""
        plane = self.by_row(value)
        if value not in self.images and self.lent.takes(value, plane):
            self.lend(value, plane)
        return plane

    def lend(self, value: Node, plane: Plane) -> None:
        """New memory of torch, which is the value as soon as a kernel has written it."""
        shape = self.shapes[value]
        self.steps.append(Lend(node=value, name=value.name, count=plane.size, shape=shape))
        self.on_host.add(value)

    def by_row(self, value: Node) -> Plane:
        """Memory for a float value, by row; whole registers are written."""
        plane = self.plane_of(value, 0)
        plane = replace(plane, pitch=pitch_of(plane.channels))
        self.stores[value.name] = Store(plane=plane, dtype="float32", is_image=value in self.images)
        self.on_plane[value] = value.name
        return plane

    def hold(self, name: str, plane: Plane, dtype: str) -> None:
        """Memory that belongs to no value."""
        self.stores[name] = Store(plane=plane, dtype=dtype)

    def keep(self, value: Node, plane: Plane, dtype: str) -> None:
        """Memory of a value, on a plane that is given."""
        self.hold(value.name, plane, dtype)
        self.on_plane[value] = value.name
