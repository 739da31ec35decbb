"""Blocks of transformers on our own kernels: all equal the reference, but norms, which keep their bound."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.tvm import Tvm, TvmExecutable
from qcompiler.backends.tvm.isa import Isa
from qcompiler.passes.partition import partition
from qcompiler.proof import quantized
from tests.backends.tvm.networks import TARGET, equal_to_the_reference
from tests.backends.tvm.sets import pytestmark, seeds

__all__ = ["pytestmark"]
FUNCTIONS = (F.gelu, F.silu, torch.tanh, torch.sigmoid, F.relu)


class Mlp(nn.Module):
    """x + down(f(up(norm(x)))), or norm(x + down(f(up(x))))."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        hidden = draw.choice([16, 24, 65, 128])
        self.function = draw.choice(FUNCTIONS)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=draw.random() < 0.5)
        self.norm: nn.Module = draw.choice([nn.LayerNorm, nn.RMSNorm])(width)
        self.norm_first, self.branch_first = draw.random() < 0.5, draw.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.function(self.up(self.norm(x) if self.norm_first else x)))
        total = x + y if self.branch_first else y + x
        return total if self.norm_first else self.norm(total)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """x + out(attention(norm(x))), queries, keys and values by linears of their own or by one."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.kv_heads, self.depth = draw.choice([1, 2, 3]), draw.choice([4, 8, 16, 20])
        self.heads = self.kv_heads * draw.choice([1, 2])
        self.in_one, self.mask = draw.random() < 0.5, draw.choice(["none", "causal", "keys", "scores"])
        inner, kv = self.heads * self.depth, self.kv_heads * self.depth
        self.sizes = [inner, kv, kv]
        self.norm = nn.LayerNorm(width)
        self.parts = nn.ModuleList(nn.Linear(width, size) for size in self.sizes)
        self.all, self.out = nn.Linear(width, inner + 2 * kv), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        found = self.all(normed).split(self.sizes, -1) if self.in_one else [p(normed) for p in self.parts]
        batch, tokens = x.shape[:2]
        q, k, v = (y.reshape(batch, tokens, -1, self.depth).transpose(1, 2) for y in found)
        mask = {
            "none": None, "causal": None, "keys": torch.arange(tokens)[None, None, None] != tokens // 2,
            "scores": 0.3 * torch.arange(float(tokens * tokens)).sin().reshape(1, 1, tokens, tokens),
        }[self.mask]  # fmt: skip
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.mask == "causal", enable_gqa=self.heads != self.kv_heads
        )
        result: Tensor = x + self.out(y.transpose(1, 2).flatten(2))
        return result


class Blocks(nn.Module):
    """Some blocks between two linears, of any width."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        width = draw.choice([12, 16, 33, 64])
        self.inputs = draw.choice([5, 16, 20])
        self.first, self.last = nn.Linear(self.inputs, width), nn.Linear(width, draw.choice([3, 16, 20]))
        kinds: list[Any] = draw.choices([Mlp, Attention], k=draw.randint(1, 3))
        self.blocks = nn.Sequential(*(kind(draw, width) for kind in kinds))
        self.tokens = draw.choice([1, 7, 16, 50])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.blocks(self.first(x)))
        return y

    def rows(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.tokens, self.inputs, generator=generator)


@seeds(4, 1)
def test_every_kernel_equals_the_reference(isa: Isa, seed: int) -> None:
    torch.manual_seed(seed)
    network = Blocks(seed)
    assert "reference" not in equal_to_the_reference(network, network.rows, isa).kernels.values()


def steps(engine: Any) -> list[str]:
    (ready,) = engine.programs.values()
    return [type(step).__name__ for step in ready.program.steps]


def test_an_mlp_is_four_calls() -> None:
    """The function in the epilogue of the first linear, the sum in that of the second."""
    torch.manual_seed(0)
    draw = random.Random(3)
    mlp = Mlp(draw, 64).eval()
    mlp.function, mlp.norm_first = F.gelu, False
    network, x = nn.Sequential(nn.LayerNorm(64), mlp).eval(), torch.randn(1, 16, 64)
    engine = Tvm(TARGET).lower(quantized(explain(network, x, target=TARGET)))
    engine([x])
    if isinstance(engine, TvmExecutable) and engine.isa.lookup is not None:
        assert steps(engine) == ["Put", "Lend", "Call", "Call", "Call", "Call"]


def test_a_sum_belongs_to_the_linear_that_returns_floats() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 16)

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.linear(x)
            return y

    graph = quantized(explain(Sum().eval(), torch.randn(2, 16), target=TARGET))
    (region,) = partition(graph, TARGET).values()
    assert region.addend is not None and region.addend.op == "placeholder"
    assert region.result.target is torch.ops.aten.add.Tensor and not region.returns_codes


def test_heads_that_the_kernel_does_not_take_are_left_to_the_reference() -> None:
    """Six features are no multiple of four."""
    torch.manual_seed(0)
    attention = Attention(random.Random(0), 12)
    attention.heads, attention.kv_heads, attention.depth, attention.mask = 2, 2, 6, "none"
    attention.in_one, attention.norm = False, nn.LayerNorm(12)
    attention.parts = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
    attention.out = nn.Linear(12, 12)
    x = torch.randn(1, 5, 12)
    graph = quantized(explain(attention.eval(), x, target=TARGET))
    (found,), (wanted,) = Tvm(TARGET).lower(graph)([x]), Reference(TARGET).lower(graph)([x])
    assert torch.equal(found, wanted)
