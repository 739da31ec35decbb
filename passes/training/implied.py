"""What follows from values that cross anyway does not cross: backward computes it again.

    fw: y, mean, rstd = norm(x, w, b)       x, mean, rstd, y cross        x, mean, rstd cross
    bw: norm_backward(dy, x, mean, rstd)                            -->   y = (x - mean) rstd w + b
        dW = dY^T y                                                       dW = dY^T y

Only along operators that are linear in what is stored, so that the mean of many draws stays right, and that
take less time than storing does. A partitioner keeps y all the same, for a product wants it in memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.passes.training.graphs import inlined
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.joint import VIEWS, base
from qcompiler.passes.training.saved import SMALLEST

aten = torch.ops.aten

LONGEST = 8  # operators that a value may take: more than a norm written out, fewer than two layers of sums
LINEAR = frozenset({
    *VIEWS, aten.clone.default, aten._to_copy.default, aten.neg.default, aten.mul.Scalar, aten.div.Scalar,
    aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar,
})  # fmt: skip


def layer_norm(x: Tensor, _: Any, w: Tensor | None, b: Tensor | None, mean: Tensor, rstd: Tensor) -> Tensor:
    """Ba, Kiros, Hinton 2016 (arXiv 1607.06450): (x - mean) rstd w + b."""
    return scaled((x - mean) * rstd, w, b).to(x.dtype)


def rms_norm(x: Tensor, _: Any, w: Tensor | None, rstd: Tensor) -> Tensor:
    """Zhang, Sennrich 2019 (arXiv 1910.07467): x rstd w."""
    return scaled(x * rstd, w, None).to(x.dtype)


def scaled(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    x = x if w is None else x * w
    return x if b is None else x + b


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The first result of a norm as a formula of so many of its operands, and of its other results."""

    formula: Callable[..., Tensor]
    operands: int
    statistics: int


NORMS: Mapping[Any, Norm] = {
    aten.native_layer_norm.default: Norm(formula=layer_norm, operands=4, statistics=2),
    aten._fused_rms_norm.default: Norm(formula=rms_norm, operands=3, statistics=1),
}


def imply(halves: Halves) -> None:
    """Let what follows from other values cross no longer; both graphs are changed."""
    held = {base(node) for node in halves.results[: halves.outputs] if isinstance(node, Node)}
    for value in halves.crossing:
        if base(value) in held:
            continue
        known = {node for node in halves.crossing if node is not value} | {*inputs_of(halves)}
        inner = steps(value, known)
        if inner:
            compute(value, inner, halves)
    halves.finish()


def inputs_of(halves: Halves) -> list[Node]:
    return list(halves.forward.graph.find_nodes(op="placeholder"))


def steps(value: Node, known: set[Node]) -> list[Node]:
    """The operators by which a value follows from what is known, in order; none where it does not."""
    if not is_stored(value):
        return []
    inner: set[Node] = set()
    open_ = [value]
    while open_:
        node = open_.pop()
        if node in known or node in inner:
            continue
        if len(inner) == LONGEST or not is_linear(node):
            return []
        inner.add(node)
        open_ += read(node)
    return sorted(inner)


def is_stored(value: Node) -> bool:
    """Whether a value would be stored in few bits, and with an error: statistics and parameters are exact."""
    x = value.meta.get("val")
    if value.op != "call_function" or not isinstance(x, Tensor):
        return False
    return bool(x.is_floating_point() and x.numel() >= SMALLEST and x.shape[-1] > 1)


def is_linear(node: Node) -> bool:
    """Whether the noise of what an operator reads is in its result as it is, or times what has none."""
    if is_norm(node) or node.target in LINEAR:
        return True
    noisy = [isinstance(arg, Node) and is_stored(arg) for arg in node.args]
    if node.target is aten.mul.Tensor:
        return sum(noisy) == 1
    if node.target is aten.div.Tensor:
        return not noisy[1]
    return bool(node.target is aten.pow.Tensor_Scalar and node.args[1] == 1)


def is_norm(node: Node) -> bool:
    """Whether a value is the first result of a norm whose others somebody reads as well."""
    if node.target is not getitem or node.args[1] != 0:
        return False
    row = NORMS.get(of(node).target)
    return row is not None and len(of(node).users) == 1 + row.statistics


def of(node: Node) -> Node:
    """The operator whose result a value is."""
    (operator,) = node.all_input_nodes
    return operator


def read(node: Node) -> list[Node]:
    """What a value is computed from; of a norm its operands and statistics."""
    return (
        [each for each in operands(node) if isinstance(each, Node)] if is_norm(node) else node.all_input_nodes
    )


def operands(node: Node) -> list[Any]:
    """Of the formula of a norm."""
    norm = of(node)
    statistics = {user.args[1]: user for user in norm.users if user is not node}
    return [
        *norm.args[: NORMS[norm.target].operands],
        *(statistics[place] for place in range(1, len(norm.users))),
    ]


def compute(value: Node, inner: list[Node], halves: Halves) -> None:
    """Compute a value in backward, before the first that reads it, and let it cross no longer."""
    leaves = [node for step in inner for node in read(step) if node not in inner]
    absent = [node for node in dict.fromkeys(leaves) if node not in halves.crossing]
    if absent:
        halves.hand_over(absent)
    copies: dict[Node, Node] = {node: halves.received(node) for node in leaves}
    arrival, graph = halves.received(value), halves.backward.graph
    with graph.inserting_before(min(arrival.users)):
        for node in inner:
            if is_norm(node):
                given = fx.node.map_arg(operands(node), copies.__getitem__)
                copies[node] = inlined(graph, NORMS[of(node).target].formula, *given)
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
    arrival.replace_all_uses_with(copies[value])
    halves.drop(value)
