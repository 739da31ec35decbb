"""How training computes its products: a format for each operand, by what the product is for.

forward      Y  = X W^T      activation, weight
grad-input   dX = dY W       gradient, weight
grad-weight  dW = dY^T X     gradient, activation
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qcompiler.errors import RecipeError
from qcompiler.numerics.hadamard import BLOCKS
from qcompiler.numerics.operands import OPERANDS, WHOLE
from qcompiler.numerics.rows import GRADIENTS


@dataclass(frozen=True, kw_only=True)
class Product:
    """Formats of both operands, the activation or gradient first, which `stochastic` rounds with noise."""

    left: str
    right: str
    stochastic: bool = False

    def __post_init__(self) -> None:
        for name in (self.left, self.right):
            if name not in OPERANDS:
                raise RecipeError(f"no operand format '{name}'", fix=f"use one of {', '.join(OPERANDS)}")


LEARNED = 2 / 7**0.5  # where learned steps start, in units of mean|x| (arXiv 1902.08153)
NORMAL = 0.44  # the step of least error for normal numbers, to which the Hadamard transform comes close


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The three products of a linear layer on the same 4-bit codes, which forward makes and backward reads.

    gradient: how dY becomes rows of codes, a name in `numerics.rows.GRADIENTS`. share: of these rows, as many
    are sampled for a product; 1 takes all, with less noise. block: of the Hadamard transform; the
    largest power of two below it where it does not divide the features; 1 is none. blocks: others, by the
    names of weights; see `training.choose_blocks`. unit: steps are unit * mean|x|, anew at each pass.
    """

    gradient: str
    block: int
    share: float = 1.0
    unit: float = LEARNED
    blocks: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gradient not in GRADIENTS:
            raise RecipeError(
                f"no gradient codes '{self.gradient}'", fix=f"use one of {', '.join(GRADIENTS)}"
            )
        if not 0 < self.share <= 1:
            raise RecipeError(f"a share of {self.share}", fix="keep more than 0 of the rows and at most 1")
        for block in (self.block, *self.blocks.values()):
            if block not in BLOCKS:
                raise RecipeError(
                    f"a Hadamard block of {block}", fix=f"use a power of two up to {BLOCKS[-1]}"
                )


@dataclass(frozen=True, kw_only=True)
class Delayed:
    """Scales from the largest magnitudes of `window` steps before (NVIDIA's TransformerEngine).

    s = 2^margin max(magnitudes) / largest        the first step takes its own magnitudes

    A step knows its scales before its tensors. What exceeds them saturates, and the next step knows of it.
    """

    window: int = 1024
    margin: int = 0

    def __post_init__(self) -> None:
        if self.window < 1:
            raise RecipeError(
                f"a window of {self.window} steps", fix="let it be 1 or more; 16 to 1024 is usual"
            )


Aim = Literal["speed", "numerics"]


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """What is computed in few bits; None is float.

    delayed: scales by the steps before, of formats that have one for the whole tensor; else each has its own.
    aim: why. For "speed" a product stays in float where few bits are no faster; for "numerics" it is in few
    bits whatever it costs, as an exact emulation does.

    Attention's own products are float unless `attention`, convolutions in the same formats unless not
    `convolutions`; with a `layer` nothing but linear layers is in few bits. tolerance: how far the gradient
    of a step may be from float's, relative; some three times what transformers show, so that a wrong scale
    is found and a rounding is not.
    """

    name: str
    tolerance: float = 0.0
    forward: Product | None = None
    grad_input: Product | None = None
    grad_weight: Product | None = None
    attention: bool = False
    convolutions: bool = True
    layer: Layer | None = None
    delayed: Delayed | None = None
    aim: Aim = "numerics"

    def __post_init__(self) -> None:
        products = [each for each in (self.forward, self.grad_input, self.grad_weight) if each]
        for format in (name for each in products for name in (each.left, each.right)):
            if self.delayed and format not in WHOLE:
                raise RecipeError(
                    f"the recipe '{self.name}' delays the scales of '{format}'",
                    why="it has more than one for a tensor",
                    fix=f"use {' or '.join(WHOLE)}",
                )

    @property
    def is_float(self) -> bool:
        return (self.forward, self.grad_input, self.grad_weight, self.layer) == (None, None, None, None)

    def product(self, role: str, *, parameter: bool) -> Product | None:
        """The formats of a product by its role: "forward", "grad-input", "grad-weight", "grad-activation"."""
        if not parameter and not self.attention:
            return None
        return {"forward": self.forward, "grad-weight": self.grad_weight}.get(role, self.grad_input)


def everywhere(
    name: str, tolerance: float, product: Product, gradient: Product | None = None, **rest: Any
) -> TrainingRecipe:
    """One pair of formats forward, and one for both products of a gradient."""
    backward = gradient or product
    return TrainingRecipe(
        name=name, tolerance=tolerance, forward=product, grad_input=backward, grad_weight=backward, **rest
    )


INT8 = Product(left="int8", right="int8")
E4M3 = Product(left="e4m3-tensor", right="e4m3-tensor")
E5M2 = Product(left="e5m2-tensor", right="e4m3-tensor")

TRAINING_RECIPES: Mapping[str, TrainingRecipe] = {
    recipe.name: recipe
    for recipe in (
        TrainingRecipe(name="float"),
        everywhere("int8", 0.04, INT8, aim="speed"),
        everywhere(
            "int8-stochastic",
            0.05,
            INT8,
            Product(left="int8", right="int8", stochastic=True),
            aim="speed",
        ),
        # arXiv 2209.05433: E4M3 forward, E5M2 for gradients, one scale per tensor.
        everywhere("fp8-hybrid", 0.2, E4M3, E5M2),
        everywhere("fp8-delayed", 0.2, E4M3, E5M2, delayed=Delayed()),
        # A scale for every row and column, powers of two: with these, E5M2's exponent bit brings nothing.
        everywhere("fp8-e4m3", 0.15, Product(left="e4m3", right="e4m3")),
        TrainingRecipe(
            name="fp8-block",
            tolerance=0.15,
            forward=Product(left="e4m3-128", right="e4m3-128x128"),
            grad_input=Product(left="e4m3-128", right="e4m3-128x128"),
            grad_weight=Product(left="e4m3-128", right="e4m3-128"),  # of two squares the scales would not fit
        ),
        everywhere("mxfp8", 0.15, Product(left="mxfp8", right="mxfp8")),
        # arXiv 2509.25149: gradients are rounded stochastically.
        everywhere(
            "nvfp4",
            0.6,
            Product(left="nvfp4", right="nvfp4"),
            Product(left="nvfp4", right="nvfp4", stochastic=True),
        ),
        # arXiv 2306.11987: Hadamard quantization, bit splitting, and a sample of half of what that makes.
        TrainingRecipe(name="int4-hq", tolerance=1.5, layer=Layer(gradient="split", block=32, share=0.5)),
        # Where 4-bit products are no faster than others, sampling saves no time and costs noise.
        TrainingRecipe(
            name="int4-hq-all", tolerance=0.8, layer=Layer(gradient="split", block=32, unit=NORMAL)
        ),
        # What it is compared with: learned-step forward, gradients on powers of two (arXiv 2112.10769).
        TrainingRecipe(name="int4-lsq-luq", tolerance=1.0, layer=Layer(gradient="logarithmic", block=1)),
    )
}


def find_training_recipe(recipe: str | TrainingRecipe) -> TrainingRecipe:
    """A recipe by its name, or itself."""
    if isinstance(recipe, TrainingRecipe):
        return recipe
    if recipe in TRAINING_RECIPES:
        return TRAINING_RECIPES[recipe]
    raise RecipeError(
        f"there is no training recipe '{recipe}'", fix=f"use one of {', '.join(TRAINING_RECIPES)}"
    )
