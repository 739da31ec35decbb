"""One normal form for every model: identities gone, constants folded, duplicates merged, rules applied.

CANONICAL = identities >> constants >> functions >> constants >> contractions >> identities >> rows
            >> constants >> duplicates
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.ir import Draft, Graph, Note, arguments, module_path, spec, value
from qcompiler.ir.graph import operator_of
from qcompiler.passes.duplicates import is_random, merge_duplicates
from qcompiler.passes.narrow import narrow
from qcompiler.passes.rules import ARITHMETIC, LINEAR
from qcompiler.rewrite import Pass, Trait, apply_rules, has

aten = torch.ops.aten
# A folded constant may be at most this many times larger than what it was made from (an expanded mask, say).
GROWTH = 4
SMALL = 1 << 16


def remove_identities(graph: Graph) -> Graph:
    """f(x) --> x for ops that do nothing in inference. exact"""
    draft = Draft(graph)
    for node in draft.nodes:
        source = identity_of(node)
        if source is not None:
            draft.replace(node, source)
            draft.fx.erase_node(node)
    return draft.finish()


def identity_of(node: Node) -> Node | None:
    """What a node merely repeats, or None."""
    if node.target is aten.cat.default:
        return only_part(node)
    if node.op != "call_function" or not isinstance(node.args[0] if node.args else None, Node):
        return None
    source: Node = node.args[0]  # type: ignore[assignment]
    if has(node, Trait.IDENTITY):
        return None if arguments(node).get("train") else source
    if node.target in SHAPED_IDENTITIES and same_spec(node, source):
        return source
    return None


def only_part(node: Node) -> Node | None:
    """What a concatenation with empty values only repeats, or None: a cache before its first token."""
    parts: Any = node.args[0]
    filled = [part for part in parts if 0 not in getattr(spec(part), "shape", ())]
    return filled[0] if len(filled) == 1 and same_spec(node, filled[0]) else None


# With the same shape and dtype on both sides these move nothing.
SHAPED_IDENTITIES = {
    aten.view.default, aten.reshape.default, aten.expand.default, aten._to_copy.default, aten.to.dtype,
    aten.slice.Tensor, aten.lift_fresh_copy.default,
}  # fmt: skip


def same_spec(first: Node, second: Node) -> bool:
    one, other = spec(first), spec(second)
    if one is None or other is None or one.dtype != other.dtype or len(one.shape) != len(other.shape):
        return False
    return all(str(a) == str(b) for a, b in zip(one.shape, other.shape, strict=True))


def fold_constants(graph: Graph) -> Graph:
    """f(constants) --> constant. exact, by running f once"""
    draft = Draft(graph)
    for node in draft.nodes:
        if not is_foldable(node):
            continue
        given = torch.fx.map_arg((node.args, node.kwargs), draft.tensor)
        with torch.no_grad():
            result = operator_of(node)(*given[0], **given[1])
        if not isinstance(result, Tensor) or grows(result, node, draft):
            continue
        path = module_path(node)
        folded = draft.constant(f"{path}.{node.name}" if path else node.name, result.clone(), before=node)
        draft.replace(node, folded)
        draft.fx.erase_node(node)
    return draft.finish()


def is_foldable(node: Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if is_random(node) or not isinstance(value(node), Tensor):
        return False
    if node.target is torch.ops.qcompiler.dequantize.default:
        return False  # a quantized weight stays integer
    return all(read.op == "get_attr" for read in node.all_input_nodes)


def grows(result: Tensor, node: Node, draft: Draft) -> bool:
    given = sum(draft.tensors[str(read.target)].numel() for read in node.all_input_nodes)
    return result.numel() > max(GROWTH * given, SMALL)


def merge_into_contractions(graph: Graph) -> Graph:
    """LINEAR >> fold constants, repeated: rules ask for constants and leave expressions of them."""
    applied: list[Note] = []
    while True:
        merged = apply_rules(replace(graph, notes=()), LINEAR)
        fired = [note for note in merged.notes if note.outcome == "applied"]
        if not fired:  # refusals count when nothing can change them any more
            return replace(merged, notes=(*graph.notes, *applied, *merged.notes))
        applied += fired
        graph = fold_constants(replace(merged, notes=graph.notes))


def name(step: Any, title: str, *, requires: str = "traced", ensures: str = "traced") -> Pass:
    return Pass(name=title, apply=step, requires=requires, ensures=ensures)


CANONICAL = (
    name(remove_identities, "remove identities"),
    name(fold_constants, "fold constants"),
    name(lambda graph: apply_rules(graph, ARITHMETIC), "recognise functions"),
    name(fold_constants, "fold constants"),
    name(merge_into_contractions, "merge into contractions"),
    name(remove_identities, "remove identities"),
    name(narrow, "compute the rows that are read"),
    name(fold_constants, "fold constants"),
    name(merge_duplicates, "merge duplicates", ensures="canonical"),
)
