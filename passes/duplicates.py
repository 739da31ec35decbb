"""Two equal calls on equal arguments become one."""

from typing import Any

import torch
from torch.fx import Node

from qcompiler.ir import Draft, Graph


def merge_duplicates(graph: Graph) -> Graph:
    """Two equal calls on equal arguments become one. exact"""
    draft = Draft(graph)
    seen: dict[Any, Node] = {}
    for node in draft.nodes:
        if node.op not in ("call_function", "get_attr") or is_random(node):
            continue
        key = repr((node.op, str(node.target), node.args, node.kwargs))
        kept = seen.setdefault(key, node)
        if kept is not node:
            draft.replace(node, kept)
            draft.fx.erase_node(node)
    return draft.finish()


def is_random(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags
