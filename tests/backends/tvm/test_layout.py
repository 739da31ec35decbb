"""Values of four axes: rows where linears and norms read them, images where convolutions do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.tvm import Tvm, TvmExecutable
from qcompiler.backends.tvm.isa import Isa
from qcompiler.proof import quantized
from tests.backends.tvm.networks import TARGET, equal_to_the_reference
from tests.backends.tvm.sets import pytestmark, seeds
from tests.backends.tvm.test_transformer import FUNCTIONS

__all__ = ["pytestmark"]


class Windows(nn.Module):
    """Linears of [B, H, W, K] as in a vision transformer with windows, with what lies between two of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.inputs, width, hidden = draw.choice([3, 16, 20]), draw.choice([4, 16, 33]), draw.choice([16, 48])
        self.first, self.up, self.gate = nn.Linear(self.inputs, width), *linears(2, width, hidden)
        self.down, self.last = nn.Linear(hidden, width), nn.Linear(2 * width, 6)
        self.function = draw.choice(FUNCTIONS)
        self.size = draw.randint(1, 6), draw.randint(1, 9)
        self.moves = draw.choice(["nothing", "flat", "pools"])
        self.norm: nn.Module = draw.choice([nn.Identity(), nn.LayerNorm(width)])
        self.pooled = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.moves == "pools":
            y = F.max_pool2d(F.relu(self.pooled(y.permute(0, 3, 1, 2))), 3, 1, 1).permute(0, 2, 3, 1)
        z = self.norm(y)
        z = y + self.down(self.function(self.up(z)) * self.gate(z))
        if self.moves == "flat":
            z = (2 * z.flatten(1, 2)).unflatten(1, self.size)
        result: Tensor = self.last(torch.cat([z, y], -1))
        return result

    def data(self, count: int, seed: int) -> Tensor:
        return torch.randn(count, *self.size, self.inputs, generator=torch.Generator().manual_seed(seed))


def linears(count: int, inputs: int, outputs: int) -> list[nn.Linear]:
    return [nn.Linear(inputs, outputs) for _ in range(count)]


@seeds(3, 1)
def test_linears_of_four_axes(isa: Isa, seed: int) -> None:
    torch.manual_seed(seed)
    network = Windows(seed)
    kernels = equal_to_the_reference(network, network.data, isa).kernels
    assert {kernel for node, kernel in kernels.items() if "linear" in node} == {"convolution"}


class Both(nn.Module):
    """A linear along the lines of a convolution's image: rows for the one, an image for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(9, 7)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(F.relu(self.conv(x)))
        return y


def test_a_linear_along_the_lines_of_an_image_is_left_to_the_reference() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 9)
    graph = quantized(explain(Both().eval(), x, target=TARGET))
    engine, reference = Tvm(TARGET).lower(graph), Reference(TARGET).lower(graph)
    assert torch.equal(engine([x])[0], reference([x])[0])


class Lines(nn.Module):
    """An image of a single line becomes a sequence, by another name of its memory, and back."""

    def __init__(self, padding: int, drop: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.image, self.line = (
            nn.Conv2d(3, 16, (1, 3), padding=(0, 1)),
            nn.Conv1d(16, 16, 3, padding=padding),
        )
        self.last, self.drop = nn.Conv2d(16, 8, (1, 3), padding=(0, padding)), drop

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.line(self.drop(F.relu(self.image(x)))))
        y: Tensor = self.last(x.unsqueeze(2))
        return y


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("drop", [lambda x: x.squeeze(2), lambda x: x.flatten(2), lambda x: x.select(2, 0)])
def test_a_sequence_has_the_border_that_its_readers_want(padding: int, drop: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 1, 11)
    graph = quantized(explain(Lines(padding, drop).eval(), x, target=TARGET))
    engine, reference = Tvm(TARGET).lower(graph), Reference(TARGET).lower(graph)
    assert isinstance(engine, TvmExecutable)
    assert torch.equal(engine([x])[0], reference([x])[0])
    assert all(each.max_lsb == 0 for each in engine.verify([x]))


def test_one_number_of_a_result_is_no_row() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)[0, 0]
            return y

    x = torch.randn(1, 8)
    graph = quantized(explain(One().eval(), x, target=TARGET))
    assert torch.equal(Tvm(TARGET).lower(graph)([x])[0], Reference(TARGET).lower(graph)([x])[0])
