"""Which values are images [N, C, H, W] or [N, C, W], and which rows [.., K]: what reads and makes them says.

conv, pool              what they read and return is an image
linear, norm            what they read and return are rows, unless it is an image already
f(x), x + y, q, dq, cat what they return is what their operands are
"""

import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch.fx import Node

from qcompiler.ir import Graph
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


def images(
    graph: Graph, regions: Iterable[Region], shapes: Mapping[Node, tuple[int, ...]]
) -> frozenset[Node]:
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
