"""Products and sums with a tensor that is repeated: a constant, or what weighs an image by channel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backends.tvm.networks import equal_to_the_reference
from tests.backends.tvm.sets import pytestmark

__all__ = ["pytestmark"]


class Scaled(nn.Module):
    """h + g x between two layers, with constants of any shape."""

    def __init__(
        self, first: nn.Module, last: nn.Module, *shapes: tuple[int, ...], rows: bool = False
    ) -> None:
        super().__init__()
        self.first, self.last, self.rows = first, last, rows
        self.g, self.h = (nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x.flatten(2).transpose(1, 2) if self.rows else x
        y: Tensor = self.last(self.h + x * self.g)
        return y


class Squeezed(nn.Module):
    """An image times a factor of every channel, which is made of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 8, 3, padding=1)
        self.down, self.up = nn.Conv2d(24, 4, 1), nn.Conv2d(4, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        factors = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        y: Tensor = self.last(factors * x)
        return y


def image(*shapes: tuple[int, ...]) -> nn.Module:
    return Scaled(nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 8, 3, padding=1), *shapes)


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "by channel": (image((24, 1, 1), (1, 24, 1, 1)), (3, 9, 7)),
    "by line and by pixel": (image((9, 1), (1, 9, 7)), (3, 9, 7)),
    "a number and all": (image((), (24, 9, 7)), (3, 9, 7)),
    "of a sequence": (Scaled(nn.Conv1d(3, 24, 3), nn.Conv1d(24, 8, 1), (24, 1), (1, 24, 9)), (3, 11)),
    "of rows": (Scaled(nn.Conv2d(3, 24, 1), nn.Linear(24, 8), (24,), (63, 1), rows=True), (3, 9, 7)),
    "squeezed": (Squeezed(), (3, 9, 7)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_repeated_has_a_kernel(name: str) -> None:
    network, shape = NETWORKS[name]
    torch.manual_seed(0)

    def data(count: int, seed: int) -> Tensor:
        return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))

    kernels = equal_to_the_reference(network, data).kernels.values()
    assert "product" in kernels and {"reference", "torch", "tvm float"}.isdisjoint(kernels)
