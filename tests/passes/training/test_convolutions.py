"""Convolutions of a training step in few bits: what is lowered, what is not and why, and what it costs."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.training import Piece
from qcompiler.training_recipe import Product, TrainingRecipe
from tests.passes.training.steps import Maps, compiled, error, gradients, stepped

DRAWS = 24


class Kinds(nn.Module):
    """A convolution in groups, one by channel, and one that is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 5, padding=2)
        self.grouped = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2)
        self.deep = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.up = nn.ConvTranspose2d(32, 8, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.first(x))))
        y: Tensor = self.up(F.relu(self.deep(x)))
        return y


def convolutions(piece: Piece) -> Counter[tuple[str, str, str]]:
    """How often which layer has which role, and in which formats or why not."""
    rows = [row for row in piece.products if "convolution" in row.name]
    return Counter((piece.names[row.parameter], row.role, row.why or row.formats) for row in rows)


def test_every_product_of_a_convolution_has_a_row() -> None:
    _, _, piece = stepped(Kinds(), torch.randn(4, 3, 12, 12), recipe="int8", memory="keep")
    few, depthwise = "int8 x int8", "a depthwise convolution sums too few products to gain from few bits"
    transposed = "a transposed convolution is not computed in few bits"
    roles = ("forward", "grad-input", "grad-weight")
    assert convolutions(piece) == Counter(
        [("first.weight", role, few) for role in ("forward", "grad-weight")]  # nobody wants its grad-input
        + [("grouped.weight", role, few) for role in roles]
        + [("deep.weight", role, depthwise) for role in roles]
        + [("up.weight", role, transposed) for role in roles]
    )


def test_blocks_along_one_axis_do_not_fit() -> None:
    _, _, piece = stepped(Maps().eval(), torch.randn(2, 3, 16, 16), recipe="mxfp8", memory="keep")
    why = "'mxfp8' has its scales in blocks along one axis, and a convolution sums over several"
    assert {reason for _, _, reason in convolutions(piece)} == {why}
    assert sum(convolutions(piece).values()) == 5


def test_a_recipe_that_leaves_convolutions_alone() -> None:
    """Their backward operator stays whole, and the numbers those of torch."""
    model, x = Kinds(), torch.randn(4, 3, 12, 12)
    int8 = Product(left="int8", right="int8")
    recipe = TrainingRecipe(name="mine", forward=int8, grad_input=int8, grad_weight=int8, convolutions=False)
    exact, expected = gradients(model, model, x)
    result, found, piece = stepped(model, x, recipe=recipe, memory="keep")
    assert torch.equal(result, exact)
    assert torch.equal(found, expected)
    assert {reason for _, _, reason in convolutions(piece)} == {
        "the recipe 'mine' leaves convolutions in float"
    }


def test_a_product_that_the_recipe_leaves_in_float() -> None:
    """One of the two of a backward operator, which is apart all the same."""
    model, x = Kinds(), torch.randn(4, 3, 12, 12)
    recipe = TrainingRecipe(name="mine", grad_input=Product(left="int8", right="int8"))
    exact, expected = gradients(model, model, x)
    result, found, piece = stepped(model, x, recipe=recipe, memory="keep")
    assert torch.equal(result, exact)
    assert 0 < error(found, expected) < 0.01
    assert sum("int8" in formats for _, _, formats in convolutions(piece)) == 1


@pytest.mark.parametrize(
    ("recipe", "forward", "gradient"),
    [
        ("int8", 0.0128, 0.0161),
        ("int8-stochastic", 0.0128, 0.0187),
        ("fp8-hybrid", 0.057, 0.0878),
        ("fp8-e4m3", 0.0583, 0.0586),
    ],
)
def test_the_error_of_convolutions_in_few_bits(recipe: str, forward: float, gradient: float) -> None:
    model, x = Maps().eval(), torch.randn(8, 3, 16, 16)
    exact, expected = gradients(model, model, x)
    result, found, piece = stepped(model, x, recipe=recipe, memory="keep")
    assert all(row.formats != "float" for row in piece.products)
    assert error(result, exact) == pytest.approx(forward, rel=0.05)
    assert error(found, expected) == pytest.approx(gradient, rel=0.05)


def test_with_what_crosses_in_four_bits() -> None:
    """Forward is what it is without, and the mean of the gradients, too."""
    model, x = Kinds(), torch.randn(4, 3, 12, 12)
    exact, expected, _ = stepped(model, x, recipe="int8", memory="keep")
    run, training = compiled(model, recipe="int8", memory="act4")
    results = [gradients(model, run, x) for _ in range(DRAWS)]
    (piece,) = training.pieces
    assert sorted(piece.bits.values()) == [1, 1, 1, 4, 4, 4]
    assert all(torch.equal(result, exact) for result, _ in results)
    found = torch.stack([gradient for _, gradient in results])
    one = sum(error(gradient, expected) ** 2 for gradient in found) / DRAWS
    assert one > 0
    assert error(found.mean(0), expected) <= 1.1 * (one / DRAWS) ** 0.5


def test_channels_may_lie_last() -> None:
    model, x = Maps().eval(), torch.randn(4, 3, 16, 16)
    expected = stepped(model, x, recipe="int8", memory="keep")
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    found = stepped(model, x.contiguous(memory_format=torch.channels_last), recipe="int8", memory="keep")
    assert error(found[0], expected[0]) < 1e-6
    assert error(found[1], expected[1]) < 1e-6


def test_overflow_stays_visible() -> None:
    model, x = Kinds(), torch.randn(4, 3, 12, 12)
    x[0, 0, 0, 0] = float("inf")
    result, gradient, _ = stepped(model, x, recipe="int8", memory="keep")
    assert not result[0].isfinite().any()
    assert result[1:].isfinite().all()
    assert not gradient.isfinite().all()
