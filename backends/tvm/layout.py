"""How values lie: as images [N, C, H, W] or [N, C, W], or as rows [.., K]; on what planes, with what borders.

conv, pool              what they read and return is an image
linear, norm            what they read and return are rows, unless it is an image already
f(x), x + y, q, dq, cat what they return is what their operands are
x[:, :, 0], views       another description of the same memory, where no reader wants a border
"""

import math
import operator
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from qcompiler.backends.tvm.families.base import pair
from qcompiler.backends.tvm.plane import GRAIN, Plane, pitch_of
from qcompiler.backends.tvm.program import Store
from qcompiler.ir import Graph, arguments
from qcompiler.passes.partition import Region
from qcompiler.rewrite import Trait, traits

aten = torch.ops.aten
qc = torch.ops.qcompiler

SPATIAL = ("conv", "max_pool", "avg_pool", "global_avg_pool")  # formulas
KEEPING = (qc.quantize.default, qc.dequantize.default, qc.dynamic_quantize.default, operator.getitem)
RESHAPES = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default,
)  # fmt: skip

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is known of all values before anything is lowered.

    borders: codes -> the widest padding among the convolutions that read them.
    """

    shapes: Mapping[Node, Shape]
    images: frozenset[Node]
    borders: Mapping[Node, int]

    def plane_of(self, value: Node, border: int) -> Plane:
        images, channels, height, width = as_image(self.shapes[value], value in self.images)
        pitch = channels if channels < GRAIN else pitch_of(channels)
        return Plane(images=images, height=height, width=width, channels=channels, pitch=pitch, border=border)

    def alias(self, node: Node, read: Node, name: str, store: Store) -> Store | None:
        """What `read` has in memory as a node that moves it describes it; None where it does not lie so.

        Rows of other rank, images of one pixel as rows, and images of a single line.
        """
        before, after = self.shapes[read], self.shapes[node]
        if store.plane.border or self.borders.get(node) or not after:
            return None  # who reads it as it is named here wants a border
        if read in self.images and set(before[2:]) == {1} and after == before[:2]:
            plane = replace(store.plane, images=1, width=store.plane.images)
        elif is_reshape(node, before) and {read, node} <= self.images and sizes(before) == sizes(after):
            return replace(store, shares=store.shares or name)
        elif is_reshape(node, before) and not {read, node} & self.images and before[-1] == after[-1]:
            plane = store.plane
        else:
            return None
        return replace(store, plane=plane, is_image=False, shares=store.shares or name)


def layout(graph: Graph, regions: Collection[Region], shapes: Mapping[Node, Shape]) -> Layout:
    return Layout(shapes=shapes, images=images(graph, regions, shapes), borders=borders(regions))


def images(graph: Graph, regions: Iterable[Region], shapes: Mapping[Node, Shape]) -> frozenset[Node]:
    """All values that are images; of those of which nothing is said, the ones of four axes."""
    three, four = ({node for node, shape in shapes.items() if len(shape) == axes} for axes in (3, 4))
    several = three | four
    alike: dict[Node, list[Node]] = defaultdict(list)
    rows: list[Node] = []
    for node in graph.fx.nodes:
        if traits(node) & Trait.ROWWISE or node.target is aten.embedding.default:
            rows += [node, *node.all_input_nodes[:1]]
        elif node.target in KEEPING or traits(node) & (Trait.ELEMENTWISE | Trait.JOINS):
            for read in node.all_input_nodes:
                if all(x in several or x.target is qc.dynamic_quantize.default for x in (node, read)):
                    alike[node].append(read)
                    alike[read].append(node)
    spatial = [
        node
        for region in regions
        if region.row.formula in SPATIAL
        for node in (region.anchor, *region.operands)
    ]
    found = reached(spatial, alike)
    return frozenset((several & found) | (four - reached(rows, alike)))


def reached(nodes: Iterable[Node], alike: Mapping[Node, Iterable[Node]]) -> set[Node]:
    """The nodes, and all that are like them, or like those."""
    found, waiting = set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += alike.get(node, ())
    return found


def borders(regions: Iterable[Region]) -> dict[Node, int]:
    found: dict[Node, int] = {}
    for region in regions:
        if region.row.formula == "conv":
            codes = region.operands[0].args[0]
            assert isinstance(codes, Node)
            found[codes] = max(found.get(codes, 0), *pair(arguments(region.anchor)["padding"]))
    return found


def is_reshape(node: Node, before: Sequence[int]) -> bool:
    """Whether only the name of a place changes: the one index of an axis selected is a reshape, too."""
    if node.target is aten.select.int:
        return bool(before[arguments(node)["dim"]] == 1)
    return node.target in RESHAPES


def sizes(image: Sequence[int]) -> tuple[int, int, int, int]:
    """[N, C, H, W] and [N, C, W] as four numbers."""
    return image[0], image[1], image[2] if len(image) == 4 else 1, image[-1]


def as_image(shape: Sequence[int], is_image: bool) -> tuple[int, int, int, int]:
    """[N, C, H, W] as it is, and [N, C, W] of a single line; rows [.., K] as one image of a single line."""
    if is_image:
        return sizes(shape)
    return 1, shape[-1], 1, math.prod(shape[:-1])
