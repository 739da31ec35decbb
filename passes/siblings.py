"""Linears that read the same value become one.

    linear(x, W1, b1), linear(x, W2, b2)   -->   split(linear(x, [W1; W2], [b1; b2]))         exact

Each row of a product is computed as before, so ranges and scales per output channel stay what they were.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label, spec

aten = torch.ops.aten
RULE = "siblings"

Alike = Callable[[Node], Any]


def join_siblings(graph: Graph, kind: Alike) -> Graph:
    """Join linears of one input that `kind` maps to one value; it maps to None what stays alone."""
    draft = Draft(graph)
    families: dict[Any, list[Node]] = {}
    for node in draft.nodes:
        if is_constant_linear(node) and (found := kind(node)) is not None:
            families.setdefault((node.args[0], found), []).append(node)
    for siblings in families.values():
        if len(siblings) > 1:
            join(draft, siblings)
            names = ", ".join(map(label, siblings[1:]))
            draft.note(RULE, siblings[0].name, "applied", f"reads the same input as {names}")
    return draft.finish()


def is_constant_linear(node: Node) -> bool:
    """Whether a node is a linear whose weight is a matrix, and weight and bias are constants."""
    if node.target is not aten.linear.default:
        return False
    given = arguments(node)
    weight = spec(given["weight"])
    if weight is None or len(weight.shape) != 2:
        return False
    return all(
        not isinstance(part, Node) or part.op == "get_attr" for part in (given["weight"], given["bias"])
    )


def join(draft: Draft, siblings: Sequence[Node]) -> None:
    """At the place of the first, where all constants are known and the input is computed."""
    first = siblings[0]
    weights = [draft.tensors[str(node.args[1].target)] for node in siblings]  # type: ignore[union-attr]
    sizes = [len(weight) for weight in weights]
    packed = draft.constant(f"{first.name}.joined.weight", torch.cat(weights), before=first)
    bias = joined_bias(draft, siblings, sizes)
    made = draft.call(
        aten.linear.default, first.args[0], packed,
        None if bias is None else draft.constant(f"{first.name}.joined.bias", bias, before=first),
        before=first, origin=first, name=f"{first.name}_joined",
    )  # fmt: skip
    parts = draft.call(aten.split_with_sizes.default, made, sizes, -1, before=first, origin=first)
    for position, node in enumerate(siblings):
        part = draft.call(operator.getitem, parts, position, before=first, origin=node)
        draft.replace(node, part)


def joined_bias(draft: Draft, siblings: Sequence[Node], sizes: Sequence[int]) -> Tensor | None:
    """One after the other; zeros for a sibling that has none."""
    biases = [draft.tensor(node.args[2]) for node in siblings]
    given = next((bias for bias in biases if bias is not None), None)
    if given is None:
        return None
    return torch.cat(
        [given.new_zeros(size) if bias is None else bias for bias, size in zip(biases, sizes, strict=True)]
    )
