"""A linear whose result is only read in parts becomes a linear for each: the inverse of joining siblings.

    linear(x, W, b)[.., i:j]   -->   linear(x, W[i:j], b[i:j])         for every part; exact

Each part then has a range, and as codes a scale, of its own.
"""

from typing import Any

import torch
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label, spec
from qcompiler.passes.siblings import is_constant_linear

aten = torch.ops.aten
RULE = "parts"


def split_parts(graph: Graph) -> Graph:
    """Split every linear with constant weights that slices along its features read, and nothing else."""
    draft = Draft(graph)
    for node in draft.nodes:
        if is_constant_linear(node) and node.users and all(map(is_part, node.users)):
            for part in list(node.users):
                draft.replace(part, linear_of(draft, node, part))
            draft.note(RULE, label(node), "applied", "its parts are read apart")
    return draft.finish()


def is_part(node: Node) -> bool:
    """x[.., i:j] with constant bounds along the last axis."""
    found = spec(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
    if node.target is not aten.slice.Tensor or found is None:
        return False
    given = arguments(node)
    last = given["dim"] % len(found.shape) == len(found.shape) - 1
    return last and given["step"] == 1 and all(isinstance(given[end], int) for end in ("start", "end"))


def linear_of(draft: Draft, linear: Node, part: Node) -> Node:
    given, bounds = arguments(linear), arguments(part)
    rows = slice(bounds["start"], bounds["end"])

    def cut(constant: Any) -> Node | None:
        tensor = draft.tensor(constant)
        if tensor is None:
            return None
        name = f"{constant.target}.{bounds['start']}"
        return draft.constant(name, tensor[rows].clone(), before=linear)

    return draft.call(
        aten.linear.default, given["input"], cut(given["weight"]), cut(given.get("bias")),
        before=linear, origin=linear, name=f"{linear.name}_{bounds['start']}",
    )  # fmt: skip
