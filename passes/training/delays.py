"""Scales that are known before their tensors: one slot for each tensor that products read, and each format.

    scale, magnitude = operand_scale(x, seen_before(), slot)
    low_bit_mm(x, w, ...)        -->  low_bit_mm(x, w, ..., scale of x, scale of w)
    low_bit_mm(dy^T, x, ...)     -->  low_bit_mm(dy^T, x, ..., scale of dy, scale of x)

Views and casts of a tensor share its slot, so that X has one scale in both products that it enters. The
scales of a step are settled when its forward pass begins, and cross into backward.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import getitem

import torch
from torch import fx
from torch.fx import Node

from qcompiler.passes.training.graphs import called
from qcompiler.passes.training.joint import operands, origin
from qcompiler.passes.training.noise import SEEN, source
from qcompiler.passes.training.products import Choice, Scales

SCALE = torch.ops.qcompiler.operand_scale.default

Slot = Callable[[str, str], int]
"""(parameter, role and side of the product) that reads an operand first  -->  its number, from 0 on."""


def delay(graph: fx.Graph, choices: Sequence[Choice], margin: int, slot: Slot) -> Mapping[Choice, Scales]:
    """Give every operand of products in few bits a scale; the graph is changed."""
    readers: dict[tuple[Node, str], tuple[Choice, int, Node]] = {}
    for choice in choices:
        for side, key in enumerate(keys(choice)):
            readers.setdefault(key, (choice, side, sides(choice)[side]))
    scales: dict[tuple[Node, str], Node] = {}
    for number, (key, (choice, side, x)) in enumerate(readers.items()):
        seen = source(graph, SEEN, x.meta["val"].device, len(readers))
        matmul = choice.matmul
        given = slot(matmul.parameter, f"{matmul.role} {'right' if side else 'left'}")
        assert given == number
        with graph.inserting_before(matmul.node):
            pair = called(graph, SCALE, x, seen, number, key[1], margin)
            scales[key] = called(graph, getitem, pair, 0)
    return {choice: (scales[keys(choice)[0]], scales[keys(choice)[1]]) for choice in choices}


def keys(choice: Choice) -> tuple[tuple[Node, str], tuple[Node, str]]:
    """The tensors that a product reads with the formats in which it does, in the order of its formats."""
    assert choice.product is not None
    left, right = sides(choice)
    return (origin(left), choice.product.left), (origin(right), choice.product.right)


def sides(choice: Choice) -> tuple[Node, Node]:
    """The operands in the order of the product's formats: a gradient is the left one."""
    left, right = operands(choice.matmul.node)
    return (right, left) if choice.is_flipped else (left, right)
