"""A convolution's backward operator, apart into one node for each product.

dx, dw, db = convolution_backward(dy, x, w, mask = 111)
    -->
dx = convolution_backward(dy, x, w, mask = 100)[0]
dw = convolution_backward(dy, x, w, mask = 010)[1]
db = sum(dy over samples and space)

Each of the first two then has a role, and formats, of its own.
"""

from collections.abc import Mapping
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.fx import Node

from qcompiler.passes.training.graphs import called

aten = torch.ops.aten

MASKS = ([True, False, False], [False, True, False])
PLACES: Mapping[tuple[bool, ...], tuple[int, int]] = {
    (True, False, False): (0, 2),
    (False, True, False): (0, 1),
}
"""What is multiplied, by the mask of a backward operator that computes one product."""


def take_apart(graph: fx.Graph) -> None:
    """Give every product of every convolution's backward a node; the graph is changed."""
    for node in graph.find_nodes(op="call_function", target=aten.convolution_backward.default):
        for part in list(node.users):
            assert part.target is getitem
            with graph.inserting_before(part):
                alone = gradient(graph, node, part.args[1])
            part.replace_all_uses_with(alone)
            graph.erase_node(part)
        graph.erase_node(node)


def gradient(graph: fx.Graph, node: Node, place: Any) -> Node:
    """One of the three results, by a node of its own."""
    if place == 2:
        (dy,) = (arg for arg in node.args[:1] if isinstance(arg, Node))
        axes = [axis for axis in range(dy.meta["val"].dim()) if axis != 1]
        return told(called(graph, aten.sum.dim_IntList, dy, axes), node)
    alone = told(called(graph, node.target, *node.args[:-1], MASKS[place]), node)
    return told(called(graph, getitem, alone, place), node)


def told(made: Node, origin: Node) -> Node:
    """A node that tells of where it comes from as another does."""
    made.meta.update({key: value for key, value in origin.meta.items() if key != "val"})
    return made


def multiplied(node: Node) -> tuple[int, int] | None:
    """The places of the two operands of a backward operator that computes one product."""
    mask: Any = node.args[-1]
    return PLACES.get(tuple(mask))
