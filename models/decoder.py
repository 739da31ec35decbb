"""Decoder language models with a functional cache of keys and values: LLaMA-style and GPT-2.

    tokens [B, T], start, cache  -->  logits [B, T, vocabulary], cache

The cache holds one pair [B, kv heads, capacity, head width] per layer. A call writes its rows from `start` on
and lets every token see the rows up to its own: one form for a prompt, a part of it and a single step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair: TypeAlias = "tuple[Tensor, Tensor]"
"""Keys and values of one layer, [B, kv heads, tokens, head width] each."""

Attend: TypeAlias = "Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Pair]]"
"""q, k, v by head -> what is attended, and the keys and values to remember."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes and parts of a decoder.

    LLaMA (arXiv 2302.13971): RMS norm, rotary positions, gated MLP, no biases.
    GPT-2: layer norm, learned positions, MLP with tanh-GELU, biases.
    """

    vocabulary: int
    width: int
    hidden: int
    depth: int
    heads: int
    kv_heads: int
    positions: int
    family: Literal["llama", "gpt2"] = "llama"
    base: float = 10000.0  # of the rotary frequencies (arXiv 2104.09864, section 3.2.2)
    epsilon: float = 1e-5
    qkv_bias: bool = False
    tied: bool = False  # whether the head is the embedding

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + D/2}) of every head by their angles; cos and sin are [T, D / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotary_tables(shape: Shape) -> Pair:
    """Cosine and sine of position times frequency, [positions, head width / 2]."""
    half = torch.arange(0, shape.head_width, 2, dtype=torch.float64) / shape.head_width
    angles = torch.outer(torch.arange(shape.positions, dtype=torch.float64), shape.base**-half)
    return angles.cos().float(), angles.sin().float()


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245): each key and value head serves several query heads."""

    def __init__(self, shape: Shape, bias: bool) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_width
        self.query = nn.Linear(shape.width, shape.width, bias=bias or shape.qkv_bias)
        self.key = nn.Linear(shape.width, kv_width, bias=bias or shape.qkv_bias)
        self.value = nn.Linear(shape.width, kv_width, bias=bias or shape.qkv_bias)
        self.output = nn.Linear(shape.width, shape.width, bias=bias)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, heads * D] -> [B, heads, T, D]"""
        batch, tokens, _ = x.shape
        return x.view(batch, tokens, -1, self.shape.head_width).transpose(1, 2)

    def forward(self, x: Tensor, rotation: Pair | None, attend: Attend) -> tuple[Tensor, Pair]:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        y, memory = attend(q, k, v)
        return self.output(y.transpose(1, 2).flatten(2)), memory


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)): SwiGLU (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Layer(nn.Module):
    """Norm first:  x + attention(norm(x)),  then  x + mlp(norm(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        is_llama = shape.family == "llama"
        self.norm1, self.norm2 = norm(shape), norm(shape)
        self.attention = Attention(shape, bias=not is_llama)
        self.mlp: nn.Module = GatedMlp(shape.width, shape.hidden) if is_llama else nn.Sequential(
            nn.Linear(shape.width, shape.hidden),
            nn.GELU(approximate="tanh"),
            nn.Linear(shape.hidden, shape.width),
        )  # fmt: skip

    def forward(self, x: Tensor, rotation: Pair | None, attend: Attend) -> tuple[Tensor, Pair]:
        y, memory = self.attention(self.norm1(x), rotation, attend)
        x = x + y
        return x + self.mlp(self.norm2(x)), memory


def norm(shape: Shape) -> nn.Module:
    if shape.family == "llama":
        return nn.RMSNorm(shape.width, eps=shape.epsilon)
    return nn.LayerNorm(shape.width, eps=shape.epsilon)


class Decoder(nn.Module):
    """The whole model, with a cache of fixed capacity."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        if shape.family == "gpt2":
            self.position = nn.Embedding(shape.positions, shape.width)
        else:
            cos, sin = rotary_tables(shape)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.depth))
        self.norm = norm(shape)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, start: Tensor, cache: Sequence[Pair]) -> tuple[Tensor, list[Pair]]:
        """`start`: int64 scalar, how many rows of the cache are filled."""
        positions = start + torch.arange(tokens.shape[1], device=tokens.device)
        slots = torch.arange(cache[0][0].shape[2], device=tokens.device)
        visible = slots <= positions[:, None]
        return self.compute(tokens, positions, [in_place(past, positions, visible) for past in cache])

    def compute(
        self, tokens: Tensor, positions: Tensor, attends: Sequence[Attend]
    ) -> tuple[Tensor, list[Pair]]:
        """All layers, each attending in its own way."""
        x = self.embedding(tokens)
        rotation = None
        if self.shape.family == "gpt2":
            x = x + self.position(positions)
        else:
            rotation = self.cos[positions], self.sin[positions]
        memories = []
        for layer, attend in zip(self.layers, attends, strict=True):
            x, memory = layer(x, rotation, attend)
            memories.append(memory)
        return self.head(self.norm(x)), memories

    def empty_cache(self, batch: int = 1, capacity: int | None = None) -> list[Pair]:
        """Zeros of the weights' type; `capacity` is how many tokens it holds (if None, all that it can)."""
        rows = self.shape.positions if capacity is None else capacity
        if not 0 < rows <= self.shape.positions:
            raise ValueError(f"A cache holds 1 to {self.shape.positions} tokens, not {rows}.")
        shape = (batch, self.shape.kv_heads, rows, self.shape.head_width)
        held = next(self.parameters()).new_zeros
        return [(held(shape), held(shape)) for _ in range(self.shape.depth)]


def in_place(past: Pair, positions: Tensor, visible: Tensor) -> Attend:
    """Write the new rows into a cache of fixed capacity, and see what `visible` [T, capacity] says."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Pair]:
        keys, values = past[0].index_copy(2, positions, k), past[1].index_copy(2, positions, v)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible, enable_gqa=True)
        return y, (keys, values)

    return attend


class Growing(nn.Module):
    """A decoder whose cache grows with every call, as most libraries export it.

    tokens [B, T]          -->  logits, cache of T rows             a whole prompt
    tokens [B, 1], cache   -->  logits, cache of one row more       one step
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, cache: Sequence[Pair] = ()) -> tuple[Tensor, list[Pair]]:
        if not cache:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            return self.decoder.compute(tokens, positions, [causal] * self.decoder.shape.depth)
        positions = torch.arange(1, device=tokens.device) + cache[0][0].shape[2]
        return self.decoder.compute(tokens, positions, [behind(past) for past in cache])


def causal(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Pair]:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), (k, v)


def behind(past: Pair) -> Attend:
    """One new token sees itself and everything before it."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Pair]:
        keys, values = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True), (keys, values)

    return attend
