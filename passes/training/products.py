"""Computing the products of a joint graph in few bits.

addmm(b, x, w)   -->  b + low_bit_mm(x, w)
mm(dy, w)        -->  low_bit_mm(dy, w)
mm(x^T, dy)      -->  low_bit_mm(dy^T, x)^T        a gradient is the left operand
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.fx import Node

from qcompiler.ir import products as _  # noqa: F401 - registers the operators
from qcompiler.numerics.philox import Purpose
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
    if family(matmul.node) == "convolution":
        return None, "convolutions are not lowered yet"
    product = recipe.product(matmul.role, parameter=bool(matmul.parameter))
    if product is None:
        what = f"of {matmul.role}" if matmul.parameter else "without a weight"
        return None, f"the recipe '{recipe.name}' leaves products {what} in float"
    return product, ""


def replace(graph: fx.Graph, matmul: Matmul, product: Product, late: set[Node], ordinal: int) -> None:
    node = matmul.node
    left, right = operands(node)
    with graph.inserting_before(node):
        key = noise_key(graph, node.meta["val"].device) if product.stochastic else None
        purpose = PURPOSES.get(matmul.role or "", Purpose.GRAD_INPUT)
        settings = (product.left, product.right, key, ordinal, purpose)
        if right in late:  # (A B)^T = B^T A^T
            flipped = [called(graph, aten.transpose.int, side, -2, -1) for side in (right, left)]
            result = called(graph, ops.low_bit_mm.default, *flipped, *settings)
            result = called(graph, aten.transpose.int, result, -2, -1)
        else:
            result = called(graph, ops.low_bit_mm.default, left, right, *settings)
        if node.target is aten.addmm.default:
            result = called(graph, aten.add.Tensor, result, node.args[0])
    result.meta.update({key: value for key, value in node.meta.items() if key != "val"})
    node.replace_all_uses_with(result)
    graph.erase_node(node)
