"""Small models, and one training step of each: by torch, and by the compiler."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.training import Piece, Training


class Block(nn.Module):
    """A transformer block, attention written out or fused."""

    def __init__(
        self,
        width: int = 64,
        heads: int = 2,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.activation, self.fused = heads, activation, fused
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.before(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-1, -2)) / math.sqrt(width // self.heads)
            seen = torch.ones(length, length, dtype=torch.bool).tril()
            attended = scores.masked_fill(~seen, -1e9).softmax(-1) @ v
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, width))
        y: Tensor = x + self.down(self.activation(self.up(self.between(x))))
        return y


class Gated(nn.Module):
    """down(silu(gate(x)) up(x)) behind a norm that is written out."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        y: Tensor = x + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return y


class Maps(nn.Module):
    """Convolutions, pooling, batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.pool = nn.Conv2d(16, 16, 3, padding=1), nn.MaxPool2d(2)
        self.dropout, self.last = nn.Dropout(0.25), nn.Linear(16 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.first(x))))
        y: Tensor = self.last(self.dropout(F.relu6(x + self.second(x)).flatten(1)))
        return y


def gradients(model: nn.Module, run: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(result, all gradients in one vector) of one step towards a fixed random target."""
    model.zero_grad()
    result = run(*inputs)
    target = torch.randn(result.shape, generator=torch.Generator().manual_seed(7))
    torch.autograd.backward(F.mse_loss(result, target))
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return result.detach(), torch.cat([gradient.flatten() for gradient in found])


def compiled(model: nn.Module, **settings: Any) -> tuple[Callable[..., Tensor], Training]:
    """The model as the compiler trains it, without graph breaks, and by no measured time."""
    torch._dynamo.reset()
    training = Training(**{"verify": False, "guard": False, **settings})
    return torch.compile(model, backend=training, fullgraph=True, dynamic=False), training


def stepped(model: nn.Module, *inputs: Tensor, **settings: Any) -> tuple[Tensor, Tensor, Piece]:
    """Result, gradients, and what became of the model's one graph."""
    run, training = compiled(model, **settings)
    result, gradient = gradients(model, run, *inputs)
    (piece,) = training.pieces
    return result, gradient, piece


def error(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact|."""
    return float((found - exact).norm() / exact.norm())
