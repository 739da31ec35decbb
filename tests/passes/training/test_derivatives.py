"""What is saved is the factor that gradients are multiplied by."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.passes.training.derivatives import DERIVATIVES
from tests.passes.training.steps import Block, Gated, error, gradients, stepped

aten = torch.ops.aten

REST: dict[Any, tuple[Any, ...]] = {
    aten.threshold_backward.default: (0,),
    aten.hardtanh_backward.default: (0.0, 6.0),
    aten.elu_backward.default: (1.0, 1.0, 1.0, False),
    aten.leaky_relu_backward.default: (0.01, False),
    aten.softplus_backward.default: (1.0, 20.0),
}
FIRST = {aten.elu_backward.default}  # what it takes from forward comes last


@pytest.mark.parametrize("op", DERIVATIVES, ids=str)
def test_a_factor_and_what_is_done_with_it_are_the_operator(op: Any) -> None:
    rule = DERIVATIVES[op]
    x, dy = 3 * torch.randn(64, 256), torch.randn(64, 256)
    given = (*REST.get(op, ()), x) if op in FIRST else (x, *REST.get(op, ()))
    expected, found = op(dy, *given), rule.after(dy, rule.factor(dy, *given))
    if rule.is_exact:
        assert torch.equal(found, expected)
    else:  # two products instead of one rounding: an ulp of each
        assert torch.allclose(found, expected, rtol=4 * torch.finfo(torch.float32).eps, atol=1e-37)


def test_the_gradients_are_those_of_torch() -> None:
    for activation in (F.relu, F.gelu, F.elu):
        model, x = Block(activation=activation), torch.randn(4, 16, 64)
        _, expected = gradients(model, model, x)
        _, found, _ = stepped(model, x, memory="act8")
        rounded = error(found, expected)
        assert rounded < 0.02, activation


def test_a_relu_leaves_a_mask_of_one_bit() -> None:
    model, x = Block(activation=F.relu), torch.randn(4, 16, 64)
    _, _, piece = stepped(model, x, memory="act4")
    (mask,) = (value for value in piece.saved if value.shape == (4, 16, 256) and value.dtype == torch.bool)
    assert piece.bits[mask.name] == 1
    assert mask.bytes(1) == 4 * 16 * 256 // 8


def test_a_gate_leaves_two_factors_instead_of_three_values() -> None:
    x = torch.randn(8, 16, 32)
    _, _, before = stepped(Gated(), x, memory="keep")
    _, _, after = stepped(Gated(), x, memory="act8")

    def wide(piece: Any) -> int:
        return sum(value.count for value in piece.saved if value.shape[-1:] == (128,) and not value.is_held)

    # silu(g), u silu'(g), and the product that the next layer reads; before: g, u and that product.
    assert wide(before) == wide(after) == 3 * 8 * 16 * 128
    assert not {"linear", "addmm"} & {value.name for value in after.saved}


class Chain(nn.Module):
    """Pointwise functions one after another between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(F.silu(torch.sigmoid(self.first(x)))))
        return y


def test_a_chain_leaves_one_factor() -> None:
    x = torch.randn(64, 64)
    _, _, piece = stepped(Chain(), x, memory="act8")
    stored = [value for value in piece.saved if not value.is_held]
    assert len(stored) == 2  # the product of three derivatives, and the operand of the last layer
    assert piece.after.crossing == 2 * (64 * 64 + 64 * 64 // 256 * 4)
