"""Convolutions along one axis, as those of an image of a single line: exactly what the reference computes."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.backends.tvm.isa import Isa
from tests.backends.tvm.networks import equal_to_the_reference
from tests.backends.tvm.sets import pytestmark, seeds

__all__ = ["pytestmark"]


class Sequences(nn.Module):
    """A stem, a block with a branch around it, a pool or none, and a head of the mean or of every place."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.inputs, width = draw.choice([1, 3, 16]), draw.choice([8, 16, 32])
        self.groups = draw.choice([1, 2, width])
        kernel, dilation = draw.choice([1, 3, 5]), draw.choice([1, 2])
        self.stem = nn.Conv1d(self.inputs, width, draw.choice([1, 4, 7]), draw.choice([1, 2]), 3)
        self.first = nn.Conv1d(
            width, width, kernel, padding=kernel // 2 * dilation, dilation=dilation, groups=self.groups
        )
        self.second = nn.Conv1d(width, width, 1, bias=draw.random() < 0.5)
        self.pools, self.by_place = draw.choice([None, F.max_pool1d, F.avg_pool1d]), draw.random() < 0.5
        self.head, self.length = nn.Linear(width, 5), draw.randint(9, 60)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        if self.pools is not None:
            x = self.pools(x, 2, 2)
        x = F.relu(x + self.second(F.relu(self.first(x))))
        y: Tensor = self.head(x.transpose(1, 2) if self.by_place else x.mean(2))
        return y

    def data(self, count: int, seed: int) -> Tensor:
        return torch.randn(count, self.inputs, self.length, generator=torch.Generator().manual_seed(seed))


@seeds(3, 1)
def test_random_networks_of_sequences(isa: Isa, seed: int) -> None:
    torch.manual_seed(seed)
    network = Sequences(seed)
    found = equal_to_the_reference(network, network.data, isa)
    assert found.verified >= 4 and "reference" not in found.kernels.values()
    layers = found.decision.plan.layers
    assert {layer.precision for layer in layers if "conv" in layer.node or "pool" in layer.node} == {"int8"}


class Gated(nn.Module):
    """Columns of a linear, which are rows, gate each other into lines of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(32, 96), nn.Conv1d(16, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gate, other = self.linear(x).split([48, 48], -1)
        y: Tensor = self.conv(F.silu(gate) * other)
        return y


def test_a_gate_that_is_read_as_an_image_is_no_gate_of_rows() -> None:
    def data(count: int, seed: int) -> Tensor:
        return torch.randn(count, 16, 32, generator=torch.Generator().manual_seed(seed))

    torch.manual_seed(0)
    kernels = equal_to_the_reference(Gated(), data).kernels
    assert "reference" not in kernels.values()
