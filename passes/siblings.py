"""Linears that read the same value become one.

    linear(x, W1, b1), linear(x, W2, b2)   -->   split(linear(x, [W1; W2], [b1; b2]))         exact

Each row of a product is computed as before, so ranges and scales per output channel stay what they were. It
saves calls; but where there is more than one row, their parts are taken apart again, which may take longer.
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label, spec
from qcompiler.passes.profit import Fusion, pays
from qcompiler.target import Target

aten = torch.ops.aten
RULE = "siblings"

Alike = Callable[[Node], Any]


def join_siblings(graph: Graph, kind: Alike, target: Target) -> Graph:
    """Join linears of one input that `kind` maps to one value, where that pays; to None what stays alone."""
    draft = Draft(graph)
    for siblings in families(draft.nodes, kind):
        names, found = ", ".join(map(label, siblings[1:])), weigh_siblings(siblings, target)
        if pays(found):
            join(draft, siblings)
            draft.note(RULE, siblings[0].name, "applied", f"reads the same input as {names}")
        elif found is not None:
            figures = f"{found.fused_us:.1f} us joined with {names}, {found.apart_us:.1f} us apart"
            draft.note(RULE, siblings[0].name, "refused", figures)
    return draft.finish()


def families(nodes: Iterable[Node], kind: Alike) -> list[list[Node]]:
    """Linears that read one value and are of one kind, where there are several."""
    found: dict[Any, list[Node]] = {}
    for node in nodes:
        if is_constant_linear(node) and (alike := kind(node)) is not None:
            found.setdefault((node.args[0], alike), []).append(node)
    return [siblings for siblings in found.values() if len(siblings) > 1]


def weigh_siblings(siblings: Sequence[Node], target: Target) -> Fusion | None:
    """One row lies in parts as it is, and is not copied; a call more for each but the first, apart."""
    costs, rows = target.costs, least_rows(siblings[0])
    ways = None if costs is None else costs.behind.get("siblings")
    if costs is None or ways is None:
        return None
    weights = [spec(arguments(node)["weight"]) for node in siblings]
    outputs, inputs = sum(int(w.shape[0]) for w in weights if w), next(int(w.shape[1]) for w in weights if w)
    alone = rows * outputs * inputs / costs.products
    return Fusion(
        kind="siblings", first=label(siblings[0]), second=label(siblings[-1]),
        fused_us=alone + (ways.fused.us(rows * outputs, costs.bandwidth) if rows > 1 else 0.0),
        apart_us=alone + (len(siblings) - 1) * ways.apart.start,
    )  # fmt: skip


def least_rows(linear: Node) -> int:
    """How many rows a linear has at least: a size that may change counts as one."""
    found = spec(linear)
    return math.prod(size for size in found.shape[:-1] if isinstance(size, int)) if found else 1


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
