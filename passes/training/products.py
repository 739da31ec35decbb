"""Computing the products of a joint graph in few bits.

    addmm(b, x, w)   -->  b + low_bit_mm(x, w)
    mm(dy, w)        -->  low_bit_mm(dy, w)
    mm(x^T, dy)      -->  low_bit_mm(dy^T, x)^T        a gradient is the left operand

and convolutions likewise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.fx import Node

from qcompiler.ir import products as _  # noqa: F401 - registers the operators
from qcompiler.numerics.philox import Purpose
from qcompiler.passes.training.apart import take_apart
from qcompiler.passes.training.convolutions import low_bit_convolution, refusal, result
from qcompiler.passes.training.graphs import called
from qcompiler.passes.training.joint import Matmul, dependent, family, matmuls, operands, tangents
from qcompiler.passes.training.noise import noise_key
from qcompiler.training_recipe import Product, TrainingRecipe

ops = torch.ops.qcompiler
aten = torch.ops.aten

PURPOSES = {"grad-weight": Purpose.GRAD_WEIGHT}


@dataclass(frozen=True, kw_only=True)
class Computed:
    """How one product is computed: in which formats, or in float, because `why`."""

    name: str
    role: str
    parameter: str
    formats: str = "float"
    why: str = ""


def compute(
    joint: fx.GraphModule, parameters: Sequence[int], recipe: TrainingRecipe, ordinal: Callable[[], int]
) -> tuple[Computed, ...]:
    """Compute in few bits what the recipe wants so; `ordinal` numbers the draws. The graph is changed."""
    if recipe.convolutions and (recipe.grad_input or recipe.grad_weight):
        take_apart(joint.graph)
    late = dependent(joint.graph, tangents(joint.graph))
    rows = []
    for matmul in matmuls(joint, parameters):
        product, why = formats(matmul, recipe)
        row = Computed(
            name=matmul.node.name, role=matmul.role or "", parameter=matmul.parameter,
            formats=f"{product.left} x {product.right}" if product else "float", why=why,
        )  # fmt: skip
        rows.append(row)
        if product is not None:
            replace(joint.graph, matmul, product, late, ordinal())
    joint.graph.eliminate_dead_code()
    joint.graph.lint()
    joint.recompile()
    return tuple(rows)


def formats(matmul: Matmul, recipe: TrainingRecipe) -> tuple[Product | None, str]:
    """The formats of a product, or why it stays in float."""
    if matmul.role is None:
        return None, matmul.why
    is_convolution = family(matmul.node) == "convolution"
    if is_convolution and not recipe.convolutions:
        return None, f"the recipe '{recipe.name}' leaves convolutions in float"
    product = recipe.product(matmul.role, parameter=bool(matmul.parameter))
    if product is None:
        what = f"of {matmul.role}" if matmul.parameter else "without a weight"
        return None, f"the recipe '{recipe.name}' leaves products {what} in float"
    if is_convolution and (why := refusal(matmul.node, product)):
        return None, why
    return product, ""


def replace(graph: fx.Graph, matmul: Matmul, product: Product, late: set[Node], ordinal: int) -> None:
    node = matmul.node
    left, right = operands(node)
    with graph.inserting_before(node):
        key = noise_key(graph, left.meta["val"].device) if product.stochastic else None
        purpose = PURPOSES.get(matmul.role or "", Purpose.GRAD_INPUT)
        settings = (product.left, product.right, key, ordinal, purpose)
        if family(node) == "convolution":
            made = low_bit_convolution(graph, node, *settings)
            node = result(node)
        elif right in late:  # (A B)^T = B^T A^T
            flipped = [called(graph, aten.transpose.int, side, -2, -1) for side in (right, left)]
            made = called(graph, ops.low_bit_mm.default, *flipped, *settings)
            made = called(graph, aten.transpose.int, made, -2, -1)
        else:
            made = called(graph, ops.low_bit_mm.default, left, right, *settings)
        if node.target is aten.addmm.default:
            made = called(graph, aten.add.Tensor, made, node.args[0])
    made.meta.update({key: value for key, value in node.meta.items() if key != "val"})
    node.replace_all_uses_with(made)
    graph.erase_node(node)
