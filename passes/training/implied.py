"""What follows from values that cross anyway does not cross: backward computes it again.

    fw: y = n w + b      n, rstd, y cross            n, rstd cross
    bw: dW = dY^T y                           -->    dW = dY^T (n w + b)

So that the mean of many draws stays right, only along operators that are linear in what is stored, and only
where backward does not multiply y with what depends on n: what is stored twice has two noises, whose product
has no mean, and the square of one has. A partitioner keeps y all the same, for a product wants it in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.numerics.groupwise import GROUP
from qcompiler.passes.training.contexts import meet
from qcompiler.passes.training.graphs import evaluate, inlined
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.joint import VIEWS, base, dependent
from qcompiler.passes.training.norms import NORMALIZED, exact, normalized, typed
from qcompiler.passes.training.saved import FLOATS, is_rounded

aten = torch.ops.aten

LONGEST = 8  # operators that a value may take: more than a norm written out, fewer than two layers of sums
LINEAR = frozenset({
    *VIEWS, aten.clone.default, aten._to_copy.default, aten.neg.default, aten.mul.Scalar, aten.div.Scalar,
    aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar,
})  # fmt: skip

AVERAGES = frozenset({aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default})


def weighted(n: Tensor, w: Tensor | None, b: Tensor | None = None) -> Tensor:
    """n w + b: what a norm gives, in the type of n."""
    y = exact(n) if w is None else exact(n) * exact(w)
    return typed(y if b is None else y + exact(b), n.dtype)


def anew(x: Tensor, rstd: Tensor, mean: Tensor | None, w: Tensor | None, b: Tensor | None = None) -> Tensor:
    return weighted(normalized(x, rstd, mean), w, b)


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Where an operator of forward has its weights; how many statistics it gives beside its result.

    Ba, Kiros, Hinton 2016 (arXiv 1607.06450); Zhang, Sennrich 2019 (arXiv 1910.07467).
    """

    weights: tuple[int, ...]
    statistics: int


NORMS: Mapping[Any, Norm] = {
    aten.native_layer_norm.default: Norm(weights=(2, 3), statistics=2),
    aten._fused_rms_norm.default: Norm(weights=(2,), statistics=1),
}


def imply(halves: Halves) -> None:
    """Let what follows from other values cross no longer; both graphs are changed."""
    held = {base(node) for node in halves.results[: halves.outputs] if isinstance(node, Node)}
    trained = set(trained_parameters(halves))
    for value in halves.crossing:
        if is_rounded(value) and base(value) not in held:
            known = ({*halves.crossing} | trained) - {value}
            inner = derivation(value, known)
            if inner and not meets_its_own(value, known_to(inner), halves):
                compute(value, inner, halves)
    halves.tidy()


def meets_its_own(value: Node, leaves: Iterable[Node], halves: Halves) -> bool:
    """Whether backward multiplies what depends on a value with what depends on those it would follow from.

    Element by element: against the mean of a row, as every norm multiplies, a bias is 1 / width of that.
    """
    noisy = [halves.received(leaf) for leaf in leaves if leaf in halves.crossing and is_rounded(leaf)]
    of_value, of_leaves = (
        dependent(halves.backward.graph, some, but=AVERAGES) for some in ([halves.received(value)], noisy)
    )
    return meet(of_value, of_leaves)


def trained_parameters(halves: Halves) -> Iterator[Node]:
    """Inputs that nothing but an optimizer changes: parameters, and among them those that get a gradient.

    Buffers are changed by steps, and a batch by who loads the next, maybe before backward reads them.
    """
    gradients: Any = next(iter(halves.backward.graph.find_nodes(op="output"))).args[0]
    inputs = halves.forward.graph.find_nodes(op="placeholder")
    for node, gradient in zip(inputs, gradients, strict=False):
        if node.name in halves.parameters and isinstance(gradient, Node):
            yield node


def derivation(value: Node, known: Set[Node]) -> list[Node]:
    """The operators by which a value follows from what is known, in order; none where it does not."""
    inner: set[Node] = set()
    open_ = [value]
    while open_:
        node = open_.pop()
        if node in known or node in inner:
            continue
        if len(inner) == LONGEST or not is_linear(node):
            return []
        inner.add(node)
        open_ += sources(node)
    return sorted(inner)


def is_linear(node: Node) -> bool:
    """Whether the noise of what an operator reads is in its result as it is, or times what has none."""
    if not all(type_of(each) in FLOATS for each in (node, *sources(node))):
        return False  # codes, masks: a cast to them rounds
    if is_norm(node) or node.target in LINEAR:
        return True
    noisy = [isinstance(arg, Node) and is_rounded(arg) for arg in node.args]
    if node.target is aten.mul.Tensor:
        return sum(noisy) == 1 and not is_by_rows(node)
    if node.target is aten.div.Tensor:
        return not noisy[1] and not is_by_rows(node)
    return bool(node.target is aten.pow.Tensor_Scalar and node.args[1] == 1)


def is_by_rows(node: Node) -> bool:
    """Whether rows have factors of their own, and share groups: a small row would get a large one's noise."""
    shapes = [arg.meta["val"].shape for arg in node.all_input_nodes]
    return any(shape[-1:] == (1,) for shape in shapes) and node.meta["val"].shape[-1] % GROUP != 0


def type_of(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def is_norm(node: Node) -> bool:
    """Whether a value is the result of a norm, of which n crosses, or whose input is exact."""
    if node.target is not getitem or node.args[1] != 0:
        return False
    norm = node.all_input_nodes[0]
    if norm.target not in NORMS or not (
        NORMALIZED in norm.meta or base(norm.all_input_nodes[0]).op == "placeholder"
    ):
        return False
    found = statistics(norm)
    # Where they are rounded, the norm has computed with others.
    return len(found) == NORMS[norm.target].statistics and all(type_of(s) == torch.float32 for s in found)


def statistics(norm: Node) -> list[Node]:
    """1 / deviation, and the mean, as far as somebody reads them."""
    found = {user.args[1]: user for user in norm.users}
    return [found[place] for place in (2, 1) if place in found]


def formula(node: Node) -> tuple[Callable[..., Tensor], list[Any]]:
    """A norm's result as a function of what is known."""
    norm = node.all_input_nodes[0]
    weights = [norm.args[place] for place in NORMS[norm.target].weights]
    if NORMALIZED in norm.meta:
        return weighted, [norm.meta[NORMALIZED], *weights]
    return anew, [norm.args[0], *[*statistics(norm), None][:2], *weights]


def sources(node: Node) -> list[Node]:
    """What a value is computed from."""
    if not is_norm(node):
        return node.all_input_nodes
    return [operand for operand in formula(node)[1] if isinstance(operand, Node)]


def known_to(inner: list[Node]) -> list[Node]:
    """The values that some operators are computed from, each once."""
    return [*dict.fromkeys(node for step in inner for node in sources(step) if node not in inner)]


def compute(value: Node, inner: list[Node], halves: Halves) -> None:
    """Compute a value in backward, before the first that reads it, and let it cross no longer."""
    leaves = known_to(inner)
    absent = [node for node in leaves if node not in halves.crossing]
    if absent:
        halves.hand_over(absent)
    copies: dict[Node, Node] = {node: halves.received(node) for node in leaves}
    arrival, graph = halves.received(value), halves.backward.graph
    with graph.inserting_before(min(arrival.users)):
        for node in inner:
            if is_norm(node):
                function, operands = formula(node)
                given = [copies[each] if isinstance(each, Node) else each for each in operands]
                copies[node] = inlined(graph, function, *given)
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
                evaluate(copies[node])
    arrival.replace_all_uses_with(copies[value])
    halves.drop(value)
