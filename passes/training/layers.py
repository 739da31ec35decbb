"""Computing linear layers on 4-bit codes: a product and those of its gradient together.

X^, I, s = codes4(x)
addmm(b, x, w^T)  -->  mm4(X^, s, w) + b
mm(dy, w)         -->  grad_input4(gradient4(dy), w, I)
mm(dy^T, x)       -->  grad_weight4(gradient4(dy), X^, s, w)

Backward reads codes, so that x itself need not cross. What two products have in common, the codes of dy or of
an x that several layers read, torch merges before it splits the graph.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from operator import getitem

import torch
from torch import fx
from torch.fx import Node

from qcompiler.ir import int4 as _  # noqa: F401 - registers the operators
from qcompiler.passes.training.graphs import called
from qcompiler.passes.training.joint import Matmul, base, dependent, is_empty, matmuls, operands, tangents
from qcompiler.passes.training.noise import noise_key
from qcompiler.passes.training.products import EMPTY, Computed
from qcompiler.training_recipe import Layer

ops = torch.ops.qcompiler
aten = torch.ops.aten

MATRICES = (aten.mm.default, aten.addmm.default)


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What becomes of a product: computed with the layer of `product`, or left in float, because `why`.

    is_left: whether the weight, or in backward the gradient, is the left operand.
    """

    matmul: Matmul
    product: Matmul
    is_left: bool
    why: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Coded:
    """A layer's input as codes, mask and step; its weight as [C, D]; the draws for its gradient."""

    codes: Node
    mask: Node
    step: Node
    weight: Node
    block: int
    unit: float
    ordinal: int


def compute_layers(
    joint: fx.GraphModule,
    parameters: Sequence[int],
    layer: Layer,
    ordinal: Callable[[], int],
    names: Mapping[str, str],
) -> tuple[Computed, ...]:
    """Compute linear layers on codes; `names` of parameters by their inputs. The graph is changed."""
    graph = joint.graph
    coded: dict[Node, Coded] = {}
    rows = []
    for step in steps(graph, matmuls(joint, parameters)):
        node, formats = step.matmul.node, "float"
        if not step.why:
            with graph.inserting_before(node):
                if step.matmul is step.product:
                    block = layer.blocks.get(names.get(step.matmul.parameter, ""), layer.block)
                    coded[node] = begin(graph, step, block, layer.unit, ordinal())
                    result = forward(graph, step, coded[node])
                    formats = f"int4 x int4, blocks of {coded[node].block}"
                else:
                    result = backward(graph, step, coded[step.product.node], layer, ordinal())
                    formats = f"{layer.gradient} x int4"
            put(graph, node, result)
        row = Computed(
            name=node.name, role=step.matmul.role or "", parameter=step.product.parameter,
            formats=formats, why=step.why,
        )  # fmt: skip
        rows.append(row)
    graph.eliminate_dead_code()
    graph.lint()
    joint.recompile()
    return tuple(rows)


def steps(graph: fx.Graph, found: Sequence[Matmul]) -> list[Step]:
    """What becomes of each product. A gradient shares the fate of its layer."""
    late = dependent(graph, tangents(graph))
    whys = {matmul.node: refusal(graph, matmul, found) for matmul in found}
    planned = []
    for matmul in found:
        product = home(matmul, found)
        left = operands(matmul.node)[0]
        is_left = base(left).name == matmul.parameter if matmul.role == "forward" else left in late
        why = (
            "torch does not tell of which product it is a gradient" if product is None else whys[product.node]
        )
        planned.append(Step(matmul=matmul, product=product or matmul, is_left=is_left, why=matmul.why or why))
    return planned


def home(matmul: Matmul, found: Sequence[Matmul]) -> Matmul | None:
    """The forward product that a product is a gradient of; itself where it is none; None if nothing tells.

    torch numbers what autograd records, and what backward runs for it bears that number again. A product that
    was not recorded bears the number of one before it, but reads other operands.
    """
    if matmul.role in {"forward", None}:
        return matmul
    own = {base(operand) for operand in operands(matmul.node)}
    number = matmul.node.meta.get("seq_nr", "none")
    of_number = [other for other in found if other.node.meta.get("seq_nr") == number]
    partners = [
        other
        for other in of_number
        if other.role == "forward" and not own.isdisjoint(map(base, operands(other.node)))
    ]
    return partners[0] if len(partners) == 1 else None


def refusal(graph: fx.Graph, matmul: Matmul, found: Sequence[Matmul]) -> str:
    """Why a forward product stays in float; "" where it does not."""
    if matmul.role is None:
        return matmul.why
    if is_empty(matmul.node):
        return EMPTY
    if not matmul.parameter:
        return "neither operand is a weight: 4 bits are for linear layers"
    if matmul.node.target not in MATRICES:
        return "4 bits are for products of two matrices"
    behind = dependent(graph, [matmul.node])
    layers = [other.node for other in found if other.role == "forward" and other.parameter]
    if behind.isdisjoint(layer for layer in layers if layer is not matmul.node):
        return "no other layer depends on it: the last classifier stays in float"
    return ""


def begin(graph: fx.Graph, step: Step, largest: int, unit: float, ordinal: int) -> Coded:
    """The codes of a layer's input, transformed in blocks that divide its features."""
    left, right = operands(step.matmul.node)
    x, weight = (turned(graph, right), left) if step.is_left else (left, turned(graph, right))
    block = gcd(weight.meta["val"].shape[1], largest)  # of a power of two: the largest that divides both
    parts = called(graph, ops.codes4.default, x, block, unit)
    codes, mask, scale = (called(graph, getitem, parts, place) for place in range(3))
    return Coded(codes=codes, mask=mask, step=scale, weight=weight, block=block, unit=unit, ordinal=ordinal)


def forward(graph: fx.Graph, step: Step, layer: Coded) -> Node:
    """Y, or Y^T = W X^T; and the bias, where one is added."""
    result = called(graph, ops.mm4.default, layer.codes, layer.step, layer.weight, layer.block, layer.unit)
    if step.is_left:
        result = called(graph, aten.t.default, result)
    node = step.matmul.node
    return (
        called(graph, aten.add.Tensor, result, node.args[0]) if node.target is aten.addmm.default else result
    )


def backward(graph: fx.Graph, step: Step, coded: Coded, how: Layer, ordinal: int) -> Node:
    """dX = dY W or dW = dY^T X, or the transpose of that where the gradient is the right operand."""
    is_input = step.matmul.role == "grad-input"
    given = operands(step.matmul.node)[0 if step.is_left else 1]
    dy = given if step.is_left == is_input else turned(graph, given)
    key = noise_key(graph, dy.meta["val"].device)
    parts = called(graph, ops.gradient4.default, dy, how.gradient, key, coded.ordinal)
    rows = [called(graph, getitem, parts, place) for place in range(3)]
    rest = (coded.weight, coded.block, coded.unit, how.share, key, ordinal)
    if is_input:
        result = called(graph, ops.grad_input4.default, *rows, coded.mask, *rest)
    else:
        result = called(graph, ops.grad_weight4.default, *rows, coded.codes, coded.step, *rest)
    return result if step.is_left else called(graph, aten.t.default, result)


def turned(graph: fx.Graph, matrix: Node) -> Node:
    """A matrix transposed; where it is a transpose itself, what it was."""
    if matrix.target is aten.t.default:
        return matrix.all_input_nodes[0]
    return called(graph, aten.t.default, matrix)


def put(graph: fx.Graph, node: Node, result: Node) -> None:
    """A result in the place of a node, with what is known of that."""
    result.meta.update({key: value for key, value in node.meta.items() if key != "val"})
    node.replace_all_uses_with(result)
    graph.erase_node(node)
