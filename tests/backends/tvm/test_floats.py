"""Ops on floats with kernels of our own, in whole networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.tvm import Tvm, TvmExecutable
from qcompiler.proof import quantized
from tests.backends.tvm.networks import TARGET
from tests.backends.tvm.sets import pytestmark

__all__ = ["pytestmark"]


class Gated(nn.Module):
    """Two linears of one input, a product of theirs, and a third around which the input is added."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=bias), nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(F.relu(self.gate(x)) * self.up(x))
        return y


@pytest.mark.parametrize(
    ("weights", "group", "bias"), [("int4", 32, False), ("int8", 0, True), ("uint4", 32, True)]
)
def test_linears_with_weights_of_few_bits(weights: str, group: int, bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Gated(64, 96, bias=bias), Gated(64, 32, bias=bias)).eval()
    recipe: Any = {"base": "w4a16", "name": "few", "weights": weights, "group_size": group}
    x = torch.randn(1, 5, 64)
    decision = explain(model, x, calibration=[x], recipe=recipe, target=TARGET)
    graph = quantized(decision)
    engine, reference = Tvm(TARGET).lower(graph), Reference(TARGET).lower(graph)
    assert isinstance(engine, TvmExecutable)
    assert torch.equal(engine([x])[0], reference([x])[0])
    ran = engine.execution(decision.plan)
    linears = [layer for layer in ran.layers if layer.node.startswith("linear")]
    assert {layer.kernel for layer in linears} == {"few-bit linear"}
    assert {layer.precision for layer in linears} == {weights}
