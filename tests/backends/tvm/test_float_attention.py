"""Attention of floats: within the stated bound of float64, with the extremes of what it returns."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.float_attention import FloatAttention, float_attention, takes
from qcompiler.backends.tvm.plain import plain, workspace
from tests.backends.tvm.sets import built, every_isa, pytestmark, some_isa
from tests.backends.tvm.test_norm import are_extremes, kept, laid, plane, room, taken

__all__ = ["pytestmark"]
TOKENS = st.sampled_from([1, 2, 5, 12, 13, 16, 31, 33, 64, 70])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa, batch=st.integers(1, 2), heads=st.sampled_from([(1, 1), (3, 3), (4, 2), (3, 1)]),
    queries=TOKENS, more=st.sampled_from([0, 1, 7]), width=st.sampled_from([16, 32, 48, 64, 80]),
    causal=st.booleans(), ranged=st.booleans(), gap=st.sampled_from([0, 3]),
    spread=st.sampled_from([0.1, 1.0, 5.0]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_float_attention(
    isa: Isa, batch: int, heads: tuple[int, int], queries: int, more: int, width: int, causal: bool,
    ranged: bool, gap: int, spread: float, seed: int,
) -> None:  # fmt: skip
    draw, keys, (many, few) = np.random.default_rng(seed), queries + more, heads
    counts = ((queries, many), (keys, few), (keys, few), (queries, many))
    planes = [plane(batch * tokens, width * count, gap) for tokens, count in counts]
    layer = FloatAttention(
        q=planes[0], k=planes[1], v=planes[2], y=planes[3], batch=batch, heads=many, kv_heads=few,
        queries=queries, keys=keys, width=width, scale=width**-0.5, causal=causal, ranged=ranged,
    )  # fmt: skip
    assert takes(layer)
    values = [
        (spread * draw.standard_normal((each.width, each.channels))).astype(np.float32) for each in planes[:3]
    ]
    y, seen = placed(np.full(planes[3].size, 99, np.float32)), room(layer.turns, isa) if ranged else []
    given_ = [laid(each, array) for each, array in zip(planes, values, strict=False)]
    built(float_attention(layer, isa, "attend"), isa)(*map(handed, [*given_, y, *seen]))

    q, k, v = (
        torch.from_numpy(array).double().reshape(batch, -1, count, width).transpose(1, 2)
        for array, count in zip(values, (many, few, few), strict=True)
    )
    mask = torch.ones(queries, keys, dtype=torch.bool)
    mask = mask.tril(more) if causal else mask
    wanted = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    scores = layer.scale * (q.abs() @ k.abs().repeat_interleave(many // few, 1).mT).max()
    bound = 2.0**-24 * v.abs().max() * (2 * (width + 12) * scores + 1.1 * keys + 20)
    found = torch.from_numpy(taken(planes[3], y).copy()).reshape(batch, queries, many, width).transpose(1, 2)
    assert (found - wanted).abs().max() <= bound
    assert kept(planes[3], y, 99)
    by_turn = found.reshape(batch, few, many // few, queries, width).reshape(layer.turns, -1)
    assert not ranged or are_extremes(by_turn.numpy(), seen)


@every_isa
def test_scratch_can_be_given_where_one_loop_is_all_the_rest(isa: Isa) -> None:
    """As in an image transformer of 50 tokens: beside its scratch the kernel is one loop over heads."""
    tokens = plane(50, 768, 0)
    layer = FloatAttention(
        q=tokens, k=tokens, v=tokens, y=tokens, batch=1, heads=12, kv_heads=12, queries=50, keys=50, width=64,
        scale=0.125, causal=False,
    )  # fmt: skip
    function = float_attention(layer, isa, "attend")
    assert workspace(function) > 0
    assert workspace(plain(function)) == 0
