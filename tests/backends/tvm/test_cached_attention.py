"""Attention over a cache of our own: within its stated bound of float64, whatever the shape and position."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.cached_attention import CachedAttention, cached_attention
from qcompiler.backends.tvm.plane import SPARE, Plane
from tests.backends.tvm.sets import built, pytestmark, some_isa
from tests.backends.tvm.test_rounding import BLOCKS, between, is_rounded

__all__ = ["pytestmark"]
UNIT = 2.0**-24


def lines(rows: int, channels: int, pitch: int) -> Plane:
    return Plane(images=1, height=1, width=rows, channels=channels, pitch=pitch)


@st.composite
def layers(draw: st.DrawFn) -> CachedAttention:
    width, kv_heads = draw(st.sampled_from([16, 32, 48, 64, 128])), draw(st.integers(1, 3))
    heads, tokens = kv_heads * draw(st.integers(1, 3)), draw(st.integers(1, 5))
    batch = draw(st.integers(1, 2))
    columns = (heads + 2 * kv_heads) * width
    return CachedAttention(
        x=lines(batch * tokens, columns, columns + 16 * draw(st.integers(0, 1))),
        y=lines(batch * tokens, heads * width, heads * width),
        batch=batch, heads=heads, kv_heads=kv_heads, width=width, capacity=draw(st.integers(tokens, 70)),
        scale=draw(st.sampled_from([width**-0.5, 1.0])), rotary=draw(st.booleans()),
        block=draw(BLOCKS),
    )  # fmt: skip


def exact(
    layer: CachedAttention, qkv: Tensor, past: list[Tensor], position: int, tables: list[Tensor]
) -> list[Tensor]:
    op = torch.ops.qcompiler.cached_attention.default
    positions = position + torch.arange(layer.tokens)
    given_ = [x.double() for x in (qkv.reshape(layer.batch, layer.tokens, -1), *past)]
    cos, sin = [x.double() for x in tables] or (None, None)
    found = op(*given_, positions, cos, sin, layer.heads, layer.scale)
    return list(found)


def bound(
    layer: CachedAttention, qkv: Tensor, past: list[Tensor], position: int, tables: list[Tensor]
) -> float:
    """As the kernel states it, with the largest of everything."""
    width, heads, kv_heads = layer.width, layer.heads, layer.kv_heads
    sides = [heads * width, kv_heads * width, kv_heads * width]
    q, k, v = (part.abs().reshape(len(qkv), -1, width) for part in torch.split(qkv, sides, -1))
    if tables:
        q, k = ((x + x.roll(width // 2, -1)) for x in (q, k))
    keys = torch.cat([k.flatten(0, 1), past[0].abs().flatten(0, 2)])
    size = layer.scale * float((q.flatten(0, 1) @ keys.T).max())
    largest = max(float(v.max()), float(past[1].abs().max()))
    steps = 2 * (width / 16 + 12) * size + 1.1 * (position + layer.tokens) + 20
    return UNIT * largest * steps


@settings(max_examples=8, deadline=None, derandomize=True)
@given(isa=some_isa, layer=layers(), place=st.floats(0, 1), seed=st.integers(0, 10_000))
def test_within_the_bound(isa: Isa, layer: CachedAttention, place: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    position = round(place * (layer.capacity - layer.tokens))
    qkv = torch.randn(layer.batch * layer.tokens, layer.x.channels, generator=generator)
    shape = (layer.batch, layer.kv_heads, layer.capacity, layer.width)
    past = [torch.randn(shape, generator=generator) for _ in range(2)]
    angles = torch.rand(layer.capacity, layer.width // 2, generator=generator) * 6
    tables = [angles.cos(), angles.sin()] if layer.rotary else []
    x = np.full(layer.x.size, np.nan, np.float32)
    x[:-SPARE].reshape(len(qkv), -1)[:, : layer.x.channels] = qkv.numpy()
    caches = [np.full(layer.cache.size, np.nan, np.float32) for _ in past]
    for cache, rows in zip(caches, past, strict=True):
        cache[: rows.numel()] = rows.numpy().reshape(-1)
    rounded = between(layer.y, layer.block)
    arrays = [
        placed(array)
        for array in (
            x, np.full(layer.position.size, position, np.int32), *(table.numpy() for table in tables),
            np.full(layer.scratch.size, np.nan, np.float32), *caches, np.zeros(layer.y.size, np.float32),
        )
    ]  # fmt: skip
    built(cached_attention(layer, isa, "kernel"), isa)(*map(handed, arrays + rounded))
    y, keys, values = exact(layer, qkv, past, position, tables)
    found = torch.from_numpy(arrays[-1][:-SPARE])
    assert float((found.reshape(y.shape) - y).abs().max()) <= bound(layer, qkv, past, position, tables)
    rows = found.reshape(len(qkv), -1)
    assert not layer.block or is_rounded(rows, layer.block, rounded)
    # Three roundings of at most |a| + |b|.
    for cache, wanted in zip(arrays[-3:-1], (keys, values), strict=True):
        torch.testing.assert_close(
            torch.from_numpy(cache[: wanted.numel()]).reshape(wanted.shape),
            wanted.float(),
            rtol=0,
            atol=3 * UNIT * 2 * float(qkv.abs().max()),
        )
