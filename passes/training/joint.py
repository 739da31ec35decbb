"""Reading a joint forward/backward graph: what depends on tangents, what sees what, what a matmul is for.

Y = X W^T                 forward
dX = dY W                 grad-input       meets the weight of a forward product
dW = dY^T X               grad-weight      meets the activation of a forward product
dA = dY B^T               grad-activation  the forward product has no parameter (attention)
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx
from torch.fx import Node

from qcompiler.passes.training.apart import multiplied
from qcompiler.passes.training.operators import PRODUCTS

aten = torch.ops.aten

Role = Literal["forward", "grad-input", "grad-weight", "grad-activation"]

# Views that change neither values nor their number: what is behind them is the same tensor.
VIEWS = frozenset({
    aten.t.default, aten.transpose.int, aten.permute.default, aten.view.default, aten.reshape.default,
    aten._unsafe_view.default, aten.expand.default, aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims,
    aten.unsqueeze.default, aten.detach.default, aten.alias.default,
})  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Matmul:
    """One product of the joint graph and what it is for; without a role it stays in float, because `why`.

    `parameter` names the weight that it belongs to; "" where neither side of the forward product is one.
    """

    node: Node
    role: Role | None
    parameter: str = ""
    why: str = ""


def tangents(graph: fx.Graph) -> list[Node]:
    """The inputs by which gradients enter; AOTAutograd names them so."""
    return [node for node in graph.find_nodes(op="placeholder") if node.name.startswith("tangents")]


def dependent(graph: fx.Graph, sources: Iterable[Node], *, but: Set[Any] = frozenset()) -> set[Node]:
    """The sources, and all that is computed from them; not through operators of `but`."""
    found = set(sources)
    for node in graph.nodes:
        if node.target not in but and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def base(node: Node) -> Node:
    """What a value is a pure view of; itself where it is none."""
    while node.op == "call_function" and node.target in VIEWS:
        node = node.all_input_nodes[0]
    return node


def origin(node: Node) -> Node:
    """What a value is a view of, or a cast: autocast casts weights and activations in front of a product."""
    node = base(node)
    while node.target is aten._to_copy.default:
        node = base(node.all_input_nodes[0])
    return node


def matmuls(joint: fx.GraphModule, parameters: Sequence[int]) -> tuple[Matmul, ...]:
    """Every product of the joint graph with its role, in the graph's order.

    parameters: positions, among the inputs, of the parameters (and of what else never changes in a step).
    A convolution's backward operator counts where it is `apart`.
    """
    graph = joint.graph
    inputs = graph.find_nodes(op="placeholder")
    weights = {inputs[position] for position in parameters}
    late = dependent(graph, tangents(graph))
    products = [node for node in graph.nodes if is_float_product(node)]
    partners = Partners.of([node for node in products if node not in late], weights)
    return tuple(
        backward(node, late, partners) if node in late else forward(node, weights) for node in products
    )


def forward(node: Node, weights: set[Node]) -> Matmul:
    """A product that no gradient enters."""
    names = [side.name for operand in operands(node) if (side := origin(operand)) in weights]
    if len(names) == 2:
        return Matmul(node=node, role=None, why="both sides are parameters")
    return Matmul(node=node, role="forward", parameter=names[0] if names else "")


def backward(node: Node, late: set[Node], partners: "Partners") -> Matmul:
    """A product that a gradient enters: its role is that of the operand which the gradient meets."""
    given = [operand for operand in operands(node) if operand not in late]
    if len(given) != 1:
        return Matmul(node=node, role=None, why="gradients enter by both sides, or by what is added")
    met = partners.met(origin(given[0]), family(node))
    if len({role for role, _ in met}) != 1:
        why = "what the gradient meets plays two parts" if met else "no forward product reads what it meets"
        return Matmul(node=node, role=None, why=why)
    role, parameter = met[0]
    return Matmul(node=node, role=role, parameter=parameter)


@dataclass(frozen=True, kw_only=True, eq=False)
class Partners:
    """For every operand of a forward product, what it means that a gradient meets it there."""

    roles: Mapping[tuple[Node, str], Sequence[tuple[Role, str]]]

    @classmethod
    def of(cls, products: Sequence[Node], weights: set[Node]) -> "Partners":
        roles: dict[tuple[Node, str], list[tuple[Role, str]]] = {}
        for product in products:
            left, right = (origin(operand) for operand in operands(product))
            for own, other in ((left, right), (right, left)):
                met: tuple[Role, str] = ("grad-activation", "")
                if own in weights:
                    met = ("grad-input", own.name)
                elif other in weights:
                    met = ("grad-weight", other.name)
                roles.setdefault((own, family(product)), []).append(met)
        return cls(roles=roles)

    def met(self, operand: Node, family: str) -> Sequence[tuple[Role, str]]:
        return self.roles.get((operand, family), ())


def family(node: Node) -> str:
    """Products of one family have gradients of that family."""
    return PRODUCTS[node.target].family


def is_float_product(node: Node) -> bool:
    """Whether a node is one product, and not yet in few bits."""
    return node.target in PRODUCTS and not PRODUCTS[node.target].is_low and places(node) is not None


def is_empty(node: Node) -> bool:
    """Whether an operand of a product has no elements, those of an expert without tokens, say."""
    return any(length == 0 for side in operands(node) for length in side.meta["val"].shape)


def places(node: Node) -> tuple[int, int] | None:
    """Where a product has its two operands; None for an operator that computes several."""
    return PRODUCTS[node.target].operands or multiplied(node)


def operands(node: Node) -> tuple[Node, Node]:
    """The two tensors that a product multiplies."""
    positions = places(node)
    assert positions is not None
    left, right = (node.args[position] for position in positions)
    assert isinstance(left, Node) and isinstance(right, Node)
    return left, right
