"""What a report says of a model on our own kernels, and what is said where there can be none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler import api, engines
from qcompiler.errors import TargetError
from tests.backends.tvm.sets import pytestmark

__all__ = ["pytestmark"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(32, 64), nn.Linear(64, 32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(10 * x + self.down(torch.relu(self.up(x))))
        return y


class Picks(nn.Module):
    """How many rows are left depends on what they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z: Tensor = self.last(y[y.sum(1) > 0])
        return z


def test_a_layer_that_adds_is_compared_with_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "raced", lambda *_, **__: None)
    torch.manual_seed(0)
    x = torch.randn(8, 32)
    compiled = qc.compile(Residual().eval(), x, calibration=[x], backend="tvm", threads=1, progress=False)
    figures = {layer["label"]: layer["sqnr_db"] for layer in compiled.to_dict()["layers"]}
    assert (
        figures["down/linear_1"] > figures["up/linear"] > 35
    )  # what is added is exact, and ten times as large


def test_sizes_that_depend_on_values_stay_with_the_other_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "WORTH_TRYING", 1)
    torch.manual_seed(0)
    model, x = Picks().eval(), torch.randn(8, 16)
    compiled = qc.compile(model, x, calibration=[x], threads=1, progress=False)
    assert compiled.backend.name == "ort"
    (told,) = (row["why"] for row in compiled.to_dict()["engines"] if row["backend"] == "tvm")
    assert "a size depends on the values of a tensor" in told
    with pytest.raises(TargetError, match="use backend='ort'"):
        qc.compile(model, x, calibration=[x], backend="tvm", threads=1, progress=False)
