"""Every product of a joint graph is told by what it meets."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.passes.training.steps import Block, Maps, error, gradients, stepped


def roles(model: nn.Module, *inputs: Tensor) -> Counter[str]:
    _, _, piece = stepped(model, *inputs, recipe="int8", memory="keep")
    return Counter(row.role or row.why for row in piece.products)


class Rows(nn.Module):
    """Two linears on a matrix, the first on the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 40), nn.Linear(40, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


def test_inputs_of_two_dimensions_are_not_taken_for_weights() -> None:
    _, _, piece = stepped(Rows(), torch.randn(32, 24), recipe="int8", memory="keep")
    found = [(row.role, piece.names[row.parameter]) for row in piece.products]
    assert sorted(found) == [
        ("forward", "first.weight"),
        ("forward", "second.weight"),
        ("grad-input", "second.weight"),
        ("grad-weight", "first.weight"),
        ("grad-weight", "second.weight"),
    ]


def test_a_transformer_block() -> None:
    assert roles(Block(), torch.randn(2, 16, 64, requires_grad=True)) == {
        "forward": 6, "grad-input": 4, "grad-weight": 4, "grad-activation": 4,
    }  # fmt: skip


class Tied(nn.Module):
    """One weight for both ways, as language models have for their words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(24, 24))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.words) @ self.words.t()


def test_tied_weights() -> None:
    assert roles(Tied(), torch.randn(32, 24)) == {"forward": 2, "grad-input": 1, "grad-weight": 2}


class Shared(nn.Module):
    """One input for two layers, and for a product with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.left(x) + self.right(x) + (x @ x.t()) @ x
        return y


def test_a_part_that_is_played_twice_stays_in_float() -> None:
    found = roles(Shared(), torch.randn(24, 24, requires_grad=True))
    assert found["forward"] == 4
    assert found["grad-input"] == 2
    assert found["what the gradient meets plays two parts"] > 0


def test_the_same_numbers_whichever_operand_the_gradient_is() -> None:
    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 24))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = (self.weight @ x.t()).t()
            return y

    torch.manual_seed(0)
    model = Flipped()
    straight = nn.Linear(24, 16, bias=False)
    straight.weight.data.copy_(model.weight.data)
    x = torch.randn(32, 24)
    results: list[Any] = [stepped(each, x, recipe="int8", memory="keep")[:2] for each in (model, straight)]
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


def test_a_gradient_that_another_product_made_is_the_left_operand_too() -> None:
    """Its format is the gradient's, E5M2, and not the weight's."""

    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.randn(24, 24)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = (self.second @ (self.first @ x.t().contiguous())).t()
            return y

    torch.manual_seed(0)
    model = Flipped()
    straight = nn.Sequential(nn.Linear(24, 24, bias=False), nn.Linear(24, 24, bias=False))
    straight.load_state_dict({"0.weight": model.first, "1.weight": model.second})
    x, same = (torch.randn(32, 24, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    stepped(model, x.requires_grad_(), recipe="fp8-hybrid", memory="keep")
    stepped(straight, same.requires_grad_(), recipe="fp8-hybrid", memory="keep")
    assert x.grad is not None
    assert same.grad is not None
    assert torch.equal(x.grad, same.grad)


def test_autocast_changes_no_role() -> None:
    model, x = Maps().eval(), torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = roles(model, x)
    assert found == roles(model, x) == {"forward": 3, "grad-input": 2, "grad-weight": 3}


@pytest.mark.parametrize(
    ("recipe", "forward", "gradient"),
    [
        ("int8", 0.003, 0.0115),
        ("int8-stochastic", 0.003, 0.0133),
        ("fp8-hybrid", 0.013, 0.0666),
        ("fp8-e4m3", 0.0126, 0.0488),
        ("fp8-block", 0.0126, 0.0488),
        ("mxfp8", 0.0126, 0.0488),
        ("nvfp4", 0.0514, 0.219),
    ],
)
def test_the_error_of_products_in_few_bits(recipe: str, forward: float, gradient: float) -> None:
    model, x = Block(), torch.randn(4, 16, 64)
    exact, expected = gradients(model, model, x)
    result, found, piece = stepped(model, x, recipe=recipe, memory="keep")
    assert Counter(row.formats != "float" for row in piece.products) == {True: 12, False: 6}
    assert error(result, exact) == pytest.approx(forward, rel=0.05)
    assert error(found, expected) == pytest.approx(gradient, rel=0.05)
