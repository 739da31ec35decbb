"""Convolutions over three axes have no integer kernel: they stay floats, what is behind them is exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc
from qcompiler import api
from qcompiler.backends.tvm import TvmExecutable
from tests.backends.tvm.networks import equal_to_the_reference
from tests.backends.tvm.sets import pytestmark

__all__ = ["pytestmark"]


class Volumes(nn.Module):
    """Two convolutions over three axes, a pool of all, and two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(2, 6, 3, padding=1), nn.Conv3d(6, 8, 3, stride=2)
        self.hidden, self.head = nn.Linear(8, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x)))).mean((2, 3, 4))
        y: Tensor = self.head(F.relu(self.hidden(x)))
        return y


def data(count: int, seed: int) -> Tensor:
    return torch.randn(count, 2, 5, 7, 6, generator=torch.Generator().manual_seed(seed))


def test_volumes_are_floats_between_kernels() -> None:
    torch.manual_seed(0)
    found = equal_to_the_reference(Volumes(), data)
    kernels = {node: kernel for node, kernel in found.kernels.items() if "conv3d" in node}
    assert len(kernels) == 2 and set(kernels.values()) <= {"tvm float", "torch"}
    assert "tvm float" in found.kernels.values() and found.verified == 2


def test_the_report_says_what_computes_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the speed guard, which could give a model this small back to float."""
    monkeypatch.setattr(api, "raced", lambda *_, **__: None)
    torch.manual_seed(0)
    compiled = qc.compile(
        Volumes().eval(), data(1, 0), calibration=[data(2, 1)], backend="tvm", threads=1, progress=False
    )
    assert isinstance(compiled.executable, TvmExecutable)
    told = {layer["op"]: layer for layer in compiled.to_dict()["layers"]}
    assert told["conv3d"]["executed"] == "float" and told["linear"]["executed"] == "int8"
    assert told["conv3d"]["kernel"] in ("tvm float", "torch")
