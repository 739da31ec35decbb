"""Save what backward multiplies by, and not what it is computed from.

    y = f(x)        dx = dy f'(x)        save x    -->    save f'(x)

so that backward is linear in what is stored, and a store without bias gives a gradient without bias. A
chain of such products saves one factor. Where f' is 0 or 1 it is a mask of one bit, and nothing is lost.

    relu            dx = [x > 0] dy                         a mask
    gelu, silu ...  dx = f'(x) dy                           f'(x)
    u silu(g)       du = silu(g) dy, dg = u silu'(g) dy     two factors, and neither u nor g

It is done on the two halves, since a partitioner that finds a derivative cheap would save x all the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.passes.training.graphs import called, inlined
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.joint import VIEWS, base, dependent, tangents
from qcompiler.passes.training.saved import SMALLEST

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Derivative:
    """op(dy, *given) = after(dy, factor(dy, *given)), where the factor depends only on the shape of dy.

    `is_exact`: to the last bit, and otherwise to the rounding of a product taken in another order.
    """

    factor: Callable[..., Tensor]
    after: Callable[[Tensor, Tensor], Tensor]
    is_exact: bool


def pass_where(keep: Callable[..., Tensor]) -> Derivative:
    """The gradient passes where `keep` holds."""
    return Derivative(
        factor=lambda dy, *given: keep(*given), after=lambda dy, mask: torch.where(mask, dy, 0), is_exact=True
    )


def smooth(op: Callable[..., Tensor]) -> Derivative:
    """op(dy, ...) = dy op(1, ...)."""
    return Derivative(
        factor=lambda dy, *given, **options: op(ones(dy), *given, **options), after=torch.mul, is_exact=False
    )


def ones(like: Tensor) -> Tensor:
    """Ones of a shape, which take no room and do not depend on the tensor that has it."""
    return torch.ones((), dtype=like.dtype, device=like.device).expand(like.shape)


DERIVATIVES: Mapping[Any, Derivative] = {
    aten.threshold_backward.default: pass_where(lambda x, threshold: x > threshold),
    aten.hardtanh_backward.default: pass_where(lambda x, low, high: (x > low) & (x < high)),
    aten.div.Tensor: Derivative(
        factor=lambda dy, x: torch.reciprocal(x).expand(dy.shape), after=torch.mul, is_exact=False
    ),
    **{
        op: smooth(op)
        for op in (
            aten.elu_backward.default, aten.gelu_backward.default, aten.hardsigmoid_backward.default,
            aten.hardswish_backward.default, aten.leaky_relu_backward.default, aten.mish_backward.default,
            aten.sigmoid_backward.default, aten.silu_backward.default, aten.softplus_backward.default,
            aten.tanh_backward.default,
        )
    },
}  # fmt: skip
"""Backward operators of pointwise functions: each takes the gradient first."""


def save_derivatives(halves: Halves, *, frugal: bool = False) -> None:
    """Let factors cross in the place of what they are computed from; both graphs are changed.

    frugal: only where a value crosses no longer for each that does, and not beside one that others read, too.
    """
    graph = halves.backward.graph
    separate(graph)
    join(graph)
    for factor in factors(graph):
        if is_hoistable(factor, halves) and (not frugal or replaces(factor)):
            cross(factor, halves)
    drop_unread(halves)


def separate(graph: fx.Graph) -> None:
    """Write every backward operator of the table as a factor and a product with it."""
    late = dependent(graph, tangents(graph))
    for node in [node for node in graph.nodes if node.target in DERIVATIVES]:
        gradient, *given = node.args
        tensors = {arg for arg in given if isinstance(arg, Node)}
        if gradient not in late or not tensors or not tensors.isdisjoint(late):
            continue
        rule = DERIVATIVES[node.target]
        with graph.inserting_before(node):
            factor = inlined(graph, rule.factor, *node.args, **node.kwargs)
            product = inlined(graph, rule.after, gradient, factor)
        late.add(product)
        node.replace_all_uses_with(product)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def join(graph: fx.Graph) -> None:
    """(dy f) g  -->  dy (f g)        where nobody else reads dy f, and all have one shape"""
    late = dependent(graph, tangents(graph))
    for node in [node for node in graph.nodes if node.target is aten.mul.Tensor]:
        outer = split(node, late)
        if outer is None or outer[0].target is not aten.mul.Tensor or len(outer[0].users) > 1:
            continue
        inner = split(outer[0], late)
        if inner is None or len({value.meta["val"].shape for value in (node, inner[1], outer[1])}) > 1:
            continue
        with graph.inserting_before(node):
            factor = called(graph, aten.mul.Tensor, inner[1], outer[1])
            product = called(graph, aten.mul.Tensor, inner[0], factor)
        late.add(product)
        node.replace_all_uses_with(product)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def split(node: Node, late: set[Node]) -> tuple[Node, Node] | None:
    """(gradient, factor) of a product of one with the other."""
    left, right = node.args
    if not (isinstance(left, Node) and isinstance(right, Node)) or (left in late) == (right in late):
        return None
    return (left, right) if left in late else (right, left)


def factors(graph: fx.Graph) -> list[Node]:
    """What gradients are multiplied by, or masked with."""
    late = dependent(graph, tangents(graph))
    found = []
    for node in graph.nodes:
        if node.target is aten.mul.Tensor and (pair := split(node, late)) is not None:
            found.append(pair[1])
        elif node.target is aten.where.ScalarOther or node.target is aten.where.self:
            found.append(node.args[0])
    return [factor for factor in dict.fromkeys(found) if factor.op == "call_function" and factor not in late]


def is_hoistable(factor: Node, halves: Halves) -> bool:
    """Whether forward can compute a factor from values that cross for it, by pointwise operators alone."""
    value = factor.meta["val"]
    if base(factor).op == "placeholder" or value.numel() < SMALLEST:
        return False
    inner = cone(factor)
    leaves = [node for node in inner if node.op == "placeholder" and node.name not in halves.parameters]
    return all(is_pointwise(node) for node in inner if node.op != "placeholder") and any(
        leaf.meta["val"].numel() == value.numel() for leaf in leaves
    )


def replaces(factor: Node) -> bool:
    """Whether some value that crosses is read for this factor alone."""
    inner = set(cone(factor))
    wide = [node for node in inner if node.op == "placeholder" and elements(node) == elements(factor)]
    return any(
        all(reader in inner for node in seen(leaf, inner) for reader in node.users if node is not factor)
        for leaf in wide
    )


def seen(leaf: Node, inner: set[Node]) -> list[Node]:
    """What is computed from a value on the way to a factor, itself included."""
    late = dependent(leaf.graph, [leaf])
    return [node for node in inner if node in late]


def elements(node: Node) -> int:
    """Elements of a value, whatever view it is."""
    return int(node.meta["val"].numel())


def is_pointwise(node: Node) -> bool:
    """Whether every element is computed from the elements at its place, or the values stay."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or node.target in VIEWS or node.target in POINTWISE


POINTWISE = frozenset({*DERIVATIVES, aten.ones.default, aten.full.default, aten._to_copy.default})


def cone(node: Node) -> list[Node]:
    """A value and all that it is computed from, in the graph's order."""
    inner, open_ = {node}, [node]
    while open_:
        for before in open_.pop().all_input_nodes:
            if before not in inner:
                inner.add(before)
                open_.append(before)
    return [each for each in node.graph.nodes if each in inner]


def cross(factor: Node, halves: Halves) -> None:
    """Compute a factor in forward, where the last of what it reads exists, and let it cross."""
    graph = halves.forward.graph
    inner = cone(factor)
    copies = {arrival: value for value, arrival in halves.arrivals.items()}
    point = max(copies[node] for node in inner if node.op == "placeholder")
    for node in inner:
        if node.op == "placeholder":
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), copies.__getitem__)
        if (same := computed(node.target, args, kwargs)) is not None:
            copies[node] = same
            continue
        with graph.inserting_after(max([point, *(arg for arg in args if isinstance(arg, Node))])):
            copies[node] = point = graph.node_copy(node, copies.__getitem__)
    crosses = copies[factor] in halves.crossing  # as an operand of something else, say
    given = halves.received(copies[factor]) if crosses else halves.hand_over([copies[factor]])[0]
    factor.replace_all_uses_with(given)


def computed(target: Any, args: Any, kwargs: Any) -> Node | None:
    """The node that computes this already."""
    readers = [user for arg in args if isinstance(arg, Node) for user in arg.users]
    return next((n for n in readers if (n.target, n.args, n.kwargs) == (target, args, kwargs)), None)


def drop_unread(halves: Halves) -> None:
    """Let cross only what backward reads."""
    halves.backward.graph.eliminate_dead_code()
    for node in halves.crossing:
        if not halves.received(node).users:
            halves.drop(node)
    halves.tidy()
