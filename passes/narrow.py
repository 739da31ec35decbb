"""Compute only the rows that are read: a selection moves up through ops that treat every row by itself.

f(x, y)[i]  -->  f(x[i], y[i])        f elementwise, or on the last axes of x only        exact

where i is a position (x[:, 0]) or a range of them (x[:, -1:]). So the head of a classifier that reads one
token leaves one token for the last block behind its attention.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label, spec
from qcompiler.passes.duplicates import merge_duplicates
from qcompiler.rewrite import Trait, has

aten = torch.ops.aten
RULE = "narrow"
LEAST_RANK = 2  # what remains is a matrix at least: kernels want rows
# What each selection takes of an axis of size 1 that stands for all rows; None: it leaves the axis as it is.
SELECTIONS: Mapping[Any, tuple[int, ...] | None] = {aten.select.int: (0,), aten.slice.Tensor: None}


def narrow(graph: Graph) -> Graph:
    """Move selections up until none can move; two that become equal are one, and move on together."""
    while True:
        draft = Draft(graph)
        moved = [node for node in draft.nodes if is_selection(node) and move_up(draft, node)]
        graph = merge_duplicates(draft.finish())
        if not moved:
            return graph


def is_selection(node: Node) -> bool:
    return node.target in SELECTIONS and isinstance(node.args[0], Node)


def move_up(draft: Draft, selection: Node) -> bool:
    """Rewrite one selection; whether it could be."""
    read, dim, *_ = selection.args
    assert isinstance(read, Node) and isinstance(dim, int)
    rank = len(shape_of(read))
    if len(read.users) != 1 or len(shape_of(selection)) < LEAST_RANK or is_absorbed(read):
        return False
    if dim % rank >= rank - whole_axes(read):
        return False
    given, behind = operands(read), rank - dim % rank  # axes are counted from the end, as broadcasting does
    if not has(read, Trait.ELEMENTWISE) and len(shape_of(given[0])) != rank:
        return False  # a linear with a vector for weight: its last axis is another one than that of its input
    if not all(aligned(read, operand, behind) for operand in given):
        return False
    args = [
        selected(draft, arg, read, behind, selection) if isinstance(arg, Node) and arg in given else arg
        for arg in read.args
    ]
    assert callable(read.target)
    keywords: dict[str, Any] = dict(read.kwargs)
    made = draft.call(read.target, *args, before=selection, origin=read, **keywords)
    draft.note(RULE, label(read), "applied")
    draft.replace(selection, made)
    draft.fx.erase_node(selection)
    return True


def is_absorbed(node: Node) -> bool:
    """Whether an op is a clamp that the kernel of a convolution computes: a selection would part the two."""
    source = node.args[0] if has(node, Trait.CLAMPS) else None
    return isinstance(source, Node) and has(source, Trait.MIXES_CHANNELS) and not has(source, Trait.ROWWISE)


def whole_axes(node: Node) -> int:
    """How many of the last axes an op needs whole: all of them, unless it treats rows by themselves."""
    if has(node, Trait.ELEMENTWISE):
        return 0
    if not has(node, Trait.ROWWISE):
        return len(shape_of(node))
    return len(arguments(node).get("normalized_shape", [None]))


def operands(node: Node) -> list[Node]:
    """The tensors whose rows an op combines: all of an elementwise one, the first of a rowwise one."""
    given = [arg for arg in node.args if isinstance(arg, Node)]
    return given if has(node, Trait.ELEMENTWISE) else given[:1]


def aligned(node: Node, operand: Node, behind: int) -> bool:
    """Whether an operand has the result's size along an axis, or is repeated along it."""
    own, whole = shape_of(operand), shape_of(node)
    return len(own) < behind or str(own[-behind]) in ("1", str(whole[-behind]))


def selected(draft: Draft, operand: Node, read: Node, behind: int, selection: Node) -> Node:
    """operand[i] along an axis; all there is where it is repeated, and itself where it lacks the axis."""
    shape = shape_of(operand)
    chosen: tuple[Any, ...] | None = selection.args[2:]
    if len(shape) >= behind and str(shape[-behind]) != str(shape_of(read)[-behind]):
        chosen = SELECTIONS[selection.target]
    if len(shape) < behind or chosen is None:
        return operand
    assert callable(selection.target)
    return draft.call(
        selection.target, operand, len(shape) - behind, *chosen, before=selection, origin=selection
    )


def shape_of(node: Node) -> tuple[Any, ...]:
    found = spec(node)
    return found.shape if found is not None else ()
