"""Computing the products of a joint graph in few bits.

    addmm(b, x, w)   -->  b + low_bit_mm(x, w)
    mm(dy, w)        -->  low_bit_mm(dy, w)
    mm(x^T, dy)      -->  low_bit_mm(dy^T, x)^T        a gradient is the left operand

and convolutions likewise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed

import torch
from torch import fx
from torch.fx import Node

from qcompiler.ir import products as _  # noqa: F401 - registers the operators
from qcompiler.numerics.philox import Purpose
from qcompiler.passes.training.apart import take_apart
from qcompiler.passes.training.convolutions import low_bit_convolution, refusal, result
from qcompiler.passes.training.graphs import called
from qcompiler.passes.training.joint import Matmul, dependent, family, is_empty, matmuls, operands, tangents
from qcompiler.passes.training.noise import noise_key
from qcompiler.passes.training.speed import MARGIN, Pace
from qcompiler.training_recipe import Product, TrainingRecipe

ops = torch.ops.qcompiler
aten = torch.ops.aten

EMPTY = "an operand has no elements"
PURPOSES = {"grad-weight": Purpose.GRAD_WEIGHT}


@dataclass(frozen=True, kw_only=True)
class Computed:
    """How one product is computed: in which formats, or in float, because `why`. pace: where it was timed."""

    name: str
    role: str
    parameter: str
    formats: str = "float"
    why: str = ""
    pace: Pace | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """A product of the graph and its formats; None is float, because `why`.

    is_flipped: a gradient is its right operand. ordinal: of its draws.
    """

    matmul: Matmul
    product: Product | None
    why: str
    is_flipped: bool
    ordinal: int = 0
    pace: Pace | None = None


Scales = tuple[Node, ...]
Delay = Callable[[fx.Graph, Sequence[Choice]], Mapping[Choice, Scales]]
"""Gives the operands of products scales, in the order of their formats; the graph is changed."""
Guard = Callable[[Sequence[Choice]], Sequence[Pace]]
"""Times each product in float, and in the formats chosen for it."""


def compute(
    joint: fx.GraphModule,
    parameters: Sequence[int],
    recipe: TrainingRecipe,
    ordinal: Callable[[], int],
    guard: Guard | None = None,
    delay: Delay | None = None,
) -> tuple[Computed, ...]:
    """Compute in few bits what the recipe wants so, and with a guard what gains by it; the graph is changed.

    `ordinal` numbers the draws, those of a product that the guard leaves in float included: what it says of
    one product changes the noise of no other.
    """
    if recipe.convolutions and (recipe.grad_input or recipe.grad_weight):
        take_apart(joint.graph)
    found = choices(joint, parameters, recipe, ordinal)
    if guard is not None:
        found = guarded(found, guard)
    rows = tuple(map(row, found))
    few = [choice for choice in found if choice.product]
    scales = delay(joint.graph, few) if delay else {}
    for choice in few:
        replace(joint.graph, choice, scales.get(choice, ()))
    joint.graph.eliminate_dead_code()
    joint.graph.lint()
    joint.recompile()
    return rows


def choices(
    joint: fx.GraphModule, parameters: Sequence[int], recipe: TrainingRecipe, ordinal: Callable[[], int]
) -> list[Choice]:
    """What the recipe wants of each product."""
    late = dependent(joint.graph, tangents(joint.graph))
    found = []
    for matmul in matmuls(joint, parameters):
        product, why = formats(matmul, recipe)
        choice = Choice(
            matmul=matmul, product=product, why=why, is_flipped=operands(matmul.node)[1] in late,
            ordinal=ordinal() if product else 0,
        )  # fmt: skip
        found.append(choice)
    return found


def guarded(found: Sequence[Choice], guard: Guard) -> list[Choice]:
    """The same with float where few bits are not faster, or cannot be timed."""
    timed = [choice for choice in found if choice.product and is_static(choice.matmul.node)]
    paces = dict(zip(timed, guard(timed), strict=True))
    return [judged(choice, paces.get(choice)) if choice.product else choice for choice in found]


def judged(choice: Choice, pace: Pace | None) -> Choice:
    if pace is None:
        why = "its shape is symbolic and cannot be timed; compile with dynamic=False"
        return changed(choice, product=None, why=why)
    if pace.pays:
        return changed(choice, pace=pace)
    assert choice.product is not None
    return changed(
        choice, product=None, why=f"{choice.product.left} is not faster by {MARGIN:.0%}", pace=pace
    )


def is_static(node: Node) -> bool:
    shapes = [read.meta["val"].shape for read in node.all_input_nodes]
    return all(isinstance(length, int) for shape in shapes for length in shape)


def row(choice: Choice) -> Computed:
    """What is told of a product."""
    matmul, product = choice.matmul, choice.product
    return Computed(
        name=matmul.node.name, role=matmul.role or "", parameter=matmul.parameter, why=choice.why,
        formats=f"{product.left} x {product.right}" if product else "float", pace=choice.pace,
    )  # fmt: skip


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
    if is_empty(matmul.node):
        return None, EMPTY
    if is_convolution and (why := refusal(matmul.node, product)):
        return None, why
    return product, ""


def replace(graph: fx.Graph, choice: Choice, scales: Scales = ()) -> None:
    """Compute a product in its formats, with given scales; what it reads may have been replaced before."""
    node, product = choice.matmul.node, choice.product
    assert product is not None
    left, right = operands(node)
    with graph.inserting_before(node):
        key = noise_key(graph, left.meta["val"].device) if product.stochastic else None
        purpose = PURPOSES.get(choice.matmul.role or "", Purpose.GRAD_INPUT)
        settings = (product.left, product.right, key, choice.ordinal, purpose)
        if family(node) == "convolution":
            made = low_bit_convolution(graph, node, *settings, scales=scales)
            node = result(node)
        elif choice.is_flipped:  # (A B)^T = B^T A^T
            flipped = [called(graph, aten.transpose.int, side, -2, -1) for side in (right, left)]
            made = called(graph, ops.low_bit_mm.default, *flipped, *settings, *scales)
            made = called(graph, aten.transpose.int, made, -2, -1)
        else:
            made = called(graph, ops.low_bit_mm.default, left, right, *settings, *scales)
        if node.target is aten.addmm.default:
            made = called(graph, aten.add.Tensor, made, node.args[0])
    made.meta.update({key: value for key, value in node.meta.items() if key != "val"})
    node.replace_all_uses_with(made)
    graph.erase_node(node)
