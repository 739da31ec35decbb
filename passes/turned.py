"""Rotary positions where heads still lie side by side, so that attention can stay by token.

rotary(by head(x))  -->  by head(rotary by token(x))         exact
"""

import torch
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments
from qcompiler.passes.heads import columns, heads_of

aten = torch.ops.aten
qc = torch.ops.qcompiler


def turned_by_token(graph: Graph) -> Graph:
    """All rotary positions of a graph."""
    draft = Draft(graph)
    for node in draft.nodes:
        if node.target is qc.rotary.default:
            turn_by_token(draft, node)
    return draft.finish()


def turn_by_token(draft: Draft, node: Node) -> None:
    """Turn first and sort by head then, where the heads are columns of one value."""
    given = arguments(node)
    found = heads_of(given["x"])
    if found is None or found.repeats != 1:
        return
    source = columns(draft, found, node)
    turned = draft.call(
        qc.rotary.default, source, given["cos"], given["sin"], found.heads,
        before=node, origin=node, name=f"{node.name}_by_token",
    )  # fmt: skip
    sizes = [draft.call(aten.sym_size.int, turned, axis, before=node, origin=node) for axis in (0, 1)]
    split = draft.call(aten.view.default, turned, [*sizes, -1, found.width], before=node, origin=node)
    draft.replace(node, draft.call(aten.transpose.int, split, 1, 2, before=node, origin=node))
