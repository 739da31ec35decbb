"""Q/DQ move and cancel by the algebra; nothing here knows an op by name.

Q(D(q))        -->  q           same scale and zero point, at most 16 bits      exact
Q(P(D(q)))     -->  P(q)        same parameters, per tensor, P moves data       exact
D(q), D(q)     -->  one D(q)                                                    exact
"""

import torch
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label
from qcompiler.passes.duplicates import merge_duplicates
from qcompiler.rewrite import Pass, Trait, has

qc = torch.ops.qcompiler
PARAMETERS = ("scale", "zero_point")


def cancel_pairs(graph: Graph) -> Graph:
    """Q(D(q)) --> q. exact"""
    draft = Draft(graph)
    for node in draft.nodes:
        source = decoded(node.args[0]) if node.target is qc.quantize.default else None
        if source is not None and same_parameters(draft, node, node.args[0]):
            draft.note("cancel-pair", label(node), "applied")
            draft.replace(node, source)
    return draft.finish()


def move_through(graph: Graph) -> Graph:
    """Q(P(D(q))) --> P(q) for data movement P. exact"""
    draft = Draft(graph)
    for node in draft.nodes:
        if node.target is not qc.quantize.default:
            continue
        moved = node.args[0]
        if not isinstance(moved, Node) or not has(moved, Trait.MOVES_DATA):
            continue
        pair = moved.args[0]
        source = decoded(pair)
        if source is None:
            continue
        if not same_parameters(draft, node, pair):
            draft.note("move-through", label(node), "refused", "scale or zero point differ on the two sides")
            continue
        assert callable(moved.target)
        on_codes = draft.call(moved.target, source, *moved.args[1:], before=node, origin=moved)
        draft.note("move-through", label(moved), "applied")
        draft.replace(node, on_codes)
    return draft.finish()


def decoded(node: object) -> Node | None:
    """The codes that a dequantize node reads, if it is one with one scale for the whole tensor."""
    if not isinstance(node, Node) or node.target is not qc.dequantize.default:
        return None
    given = arguments(node)
    return given["q"] if given["axis"] is None else None


def same_parameters(draft: Draft, first: Node, second: object) -> bool:
    """Whether a quantize and a dequantize use equal constants and one format of at most 16 bits."""
    assert isinstance(second, Node)
    one, other = arguments(first), arguments(second)
    if one["format"] != other["format"] or one["axis"] != other["axis"]:
        return False
    pairs = [(draft.tensor(one[name]), draft.tensor(other[name])) for name in PARAMETERS]
    return all(a is not None and b is not None and bool((a == b).all()) for a, b in pairs)


def step(apply: object, title: str) -> Pass:
    return Pass(name=title, apply=apply, requires="quantized", ensures="quantized")  # type: ignore[arg-type]


SIMPLIFY_QDQ = (
    step(merge_duplicates, "merge duplicates"),
    step(move_through, "move q/dq through data movement"),
    step(cancel_pairs, "cancel q/dq pairs"),
    step(merge_duplicates, "merge duplicates"),
)
