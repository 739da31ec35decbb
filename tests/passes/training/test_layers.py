"""Linear layers on 4-bit codes, found and computed in whole models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import RecipeError
from qcompiler.numerics import measure_bias
from qcompiler.training import choose_blocks
from qcompiler.training_recipe import Layer
from tests.ir.test_int4 import straight_through
from tests.passes.training.steps import Block, compiled, error, gradients, stepped

CLASSIFIER = "no other layer depends on it: the last classifier stays in float"
FLOAT = "neither operand is a weight: 4 bits are for linear layers"


def stack(width: int = 64) -> nn.Sequential:
    layers = [nn.Linear(width, width) for _ in range(3)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def test_five_bits_cross_for_an_input() -> None:
    _, _, piece = stepped(stack(), torch.randn(128, 64), recipe="int4-hq", memory="act8")
    count = 128 * 64
    codes, mask, relus = count // 2, count // 8, 2 * count // 8
    classifier = count + count // 256 * 4  # in float: its input in 8 bits, and bounds
    # Nobody asks for the gradient of the first layer's input: its mask stays. Two steps and the key cross.
    assert piece.after.crossing == (codes + mask) + codes + relus + classifier + 2 * 4 + 3 * 8


class Attending(nn.Module):
    """Three layers that read one value."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.last = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        y: Tensor = self.last(self.q(x) * self.k(x) + self.v(x))
        return y


def test_what_several_layers_read_crosses_once() -> None:
    x = torch.randn(2, 64, 64, requires_grad=True)
    _, _, piece = stepped(Attending(), x, recipe="int4-hq", memory="keep")
    packed = [value.shape for value in piece.saved if value.dtype == torch.uint8]
    assert sorted(packed) == [(128, 8), (128, 32)]
    names = {row.name: piece.names[row.parameter] for row in piece.products if row.role == "grad-weight"}
    assert sorted(names.values()) == [f"{name}.weight" for name in ("k", "last", "q", "v")]


@pytest.mark.parametrize(
    ("recipe", "forward", "backward"),
    [
        ("int4-hq", "int4 x int4, blocks of 32", "split x int4"),
        ("int4-lsq-luq", "int4 x int4, blocks of 1", "logarithmic x int4"),
    ],
)
def test_a_transformer_block(recipe: str, forward: str, backward: str) -> None:
    x = torch.randn(2, 16, 64, requires_grad=True)
    _, _, piece = stepped(Block(), x, recipe=recipe, memory="keep")
    assert Counter((row.role, row.formats, row.why) for row in piece.products) == {
        ("forward", forward, ""): 3,
        ("grad-input", backward, ""): 3,
        ("grad-weight", backward, ""): 3,
        ("forward", "float", FLOAT): 2,
        ("grad-activation", "float", FLOAT): 4,
        ("forward", "float", CLASSIFIER): 1,
        ("grad-input", "float", CLASSIFIER): 1,
        ("grad-weight", "float", CLASSIFIER): 1,
    }


Product = Callable[[Tensor, Tensor, int], Tensor]


class Winding(nn.Module):
    """A layer behind a layer, one that is used twice, and one whose weight is the left operand."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((48, 24), (48, 48), (40, 48), (8, 40))
        self.first, self.twice, self.left, self.last = (
            nn.Parameter(torch.randn(size) / size[1] ** 0.5) for size in sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        x = (x @ self.first.t()) @ self.twice.t()
        x = torch.tanh(x) @ self.twice.t()
        return (self.left @ x.t()).t() @ self.last.t()

    def straight_through(self, x: Tensor) -> Tensor:
        first, twice, left, last = (weight.double() for weight in self.parameters())
        x = straight_through(straight_through(x.double(), first, 8), twice, 16)
        x = straight_through(torch.tanh(x), twice, 16)
        return (straight_through(x, left, 16) @ last.t()).float()


@pytest.fixture
def winding() -> tuple[Winding, Tensor]:
    return Winding(), torch.randn(64, 24, generator=torch.Generator().manual_seed(5))


def test_the_mean_of_the_gradients_is_the_straight_through_gradient(winding: tuple[Winding, Tensor]) -> None:
    model, x = winding
    exact, expected = gradients(model, model.straight_through, x)
    run, training = compiled(model, recipe="int4-hq", memory="keep")
    draws = [gradients(model, run, x) for _ in range(100)]
    (piece,) = training.pieces
    assert sum(row.formats != "float" for row in piece.products) == 4 + 3 + 4
    assert all(error(result, exact) < 1e-6 for result, _ in draws)
    assert measure_bias((gradient for _, gradient in draws), expected).z < 4
    _, unrounded = gradients(model, model, x)
    assert measure_bias((gradient for _, gradient in draws), unrounded).z > 4


def test_blocks_are_chosen_from_real_inputs() -> None:
    model, x = stack(), torch.randn(128, 64)
    x[:, :4] *= 4
    recipe = choose_blocks("int4-hq", model, x)
    assert recipe.layer is not None
    chosen = recipe.layer.blocks
    assert chosen["0.weight"] == 16  # and not 32, as without inputs
    _, _, piece = stepped(model, x, recipe=recipe, memory="keep")
    formats = [row.formats for row in piece.products if row.role == "forward"]
    assert formats == [f"int4 x int4, blocks of {chosen[f'{name}.weight']}" for name in (0, 2)] + ["float"]


def test_recipes_without_meaning_are_refused() -> None:
    with pytest.raises(RecipeError, match="no gradient codes 'linear'"):
        Layer(gradient="linear", block=32)
    with pytest.raises(RecipeError, match="a Hadamard block of 48"):
        Layer(gradient="split", block=32, blocks={"fc.weight": 48})
    with pytest.raises(RecipeError, match="has no Hadamard blocks"):
        choose_blocks("int8", stack(), torch.randn(4, 64))
