"""By how backward reads a value: fused attention by the places of its schema, and what is met twice."""

import pytest
import torch
from torch import Tensor, nn

from qcompiler.passes.training.contexts import EXACT, LINEAR, NONLINEAR, READS
from qcompiler.passes.training.operators import ATTENTION
from tests.passes.training.steps import error, gradients, stepped

BITS = {
    "query": NONLINEAR,
    "key": NONLINEAR,
    "value": LINEAR,
    "out": LINEAR,
    "logsumexp": EXACT,
    "attn_bias": EXACT,
}
BACKWARD = [op for op in READS if "scaled_dot_product" in str(op)]


def test_every_fused_attention_has_a_row() -> None:
    forward = {str(op).removesuffix(".default") for op in ATTENTION}
    assert {str(op).removesuffix("_backward.default") for op in BACKWARD} == forward


@pytest.mark.parametrize("op", BACKWARD, ids=str)
def test_rows_of_attention_are_those_of_its_schema(op: object) -> None:
    for place, argument in enumerate(op._schema.arguments):  # type: ignore[attr-defined]
        if argument.name in BITS:
            assert READS[op].get(place) == BITS[argument.name], argument.name


class Met(nn.Module):
    """y = (a h + x) h: the gradient of a is (dy h) h, with the noise of h twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.factor = nn.Linear(48, 48), nn.Parameter(torch.rand(48) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y: Tensor = (self.factor * h + x) * h
        return y


def test_what_is_multiplied_with_itself_keeps_four_bits() -> None:
    _, _, piece = stepped(Met(), torch.randn(64, 48), memory="act2")
    stored = [value for value in piece.saved if value.shape == (64, 48) and not value.is_held]
    assert {value.bits for value in stored} == {(8, 4)}
    _, _, plain = stepped(
        nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 48)), torch.randn(64, 48), memory="act2"
    )
    assert {value.bits for value in plain.saved if not value.is_held} == {(8, 4, 2)}


class Cube(nn.Module):
    """A factor of backward that crosses as an operand already."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(48, 48), nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y: Tensor = self.last(h * h * h)
        return y


def test_a_factor_that_crosses_already_crosses_once() -> None:
    model, x = Cube(), torch.randn(64, 48)
    _, expected = gradients(model, model, x)
    _, found, piece = stepped(model, x, memory="act8", verify=True)
    assert error(found, expected) < 0.02
    names = [value.name for value in piece.saved]
    assert len(names) == len(set(names))
