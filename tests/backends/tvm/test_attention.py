"""Attention of our own: equal to the reference to the last bit, whatever the shape and the mask."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from qcompiler.backends.reference import attention as formula
from qcompiler.backends.reference.kernels import Codes, Output
from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.attention import Attention, Operand, attention, takes
from qcompiler.backends.tvm.plane import Plane
from qcompiler.numerics import sqnr
from tests.backends.tvm.sets import BEST, built, pytestmark, some_isa

__all__ = ["pytestmark"]
Strides = tuple[int, int, int, int]


def layer(
    batch: int, heads: int, shared: int, queries: int, keys: int, width: int,
    *, causal: bool = False, mask: Strides | None = None, gap: int = 0,
) -> Attention:  # fmt: skip
    """q and k, v of `heads / shared` heads; k and v lie side by side on one plane, `gap` channels apart."""
    kv = heads // shared * width
    q, y = (rows(batch * queries, heads * width + more) for more in (gap, 0))
    both = rows(batch * keys, 2 * kv + gap)
    return Attention(
        q=Operand(plane=q, first=gap), k=Operand(plane=both), v=Operand(plane=both, first=kv + gap),
        y=Operand(plane=y),
        batch=batch, heads=heads, kv_heads=heads // shared, queries=queries, keys=keys, width=width,
        causal=causal, mask=mask,
    )  # fmt: skip


def rows(tokens: int, channels: int) -> Plane:
    return Plane(images=1, height=1, width=tokens, channels=channels, pitch=channels + 3)


def put(operand: Operand, memory: NDArray[np.uint8], codes: NDArray[np.uint8]) -> None:
    """[B, H, T, D] where its heads lie."""
    batch, heads, _, width = codes.shape
    taken(operand, memory, batch, heads, width)[:] = codes.transpose(0, 2, 1, 3)


def taken(operand: Operand, memory: NDArray[Any], batch: int, heads: int, width: int) -> NDArray[Any]:
    """[B, T, H, D] of a plane, as a view."""
    plane = operand.plane
    pixels = memory[: plane.width * plane.pitch].reshape(batch, -1, plane.pitch)
    channels = pixels[..., operand.first : operand.first + heads * width]
    return np.lib.stride_tricks.as_strided(
        channels, (*channels.shape[:2], heads, width), (*channels.strides[:2], width, 1)
    )


def quantized(values: NDArray[np.uint8], scale: float, zero: int) -> Codes:
    return Codes(
        values=torch.from_numpy(values), scale=torch.tensor(scale),
        zero_point=torch.tensor(zero, dtype=torch.uint8), format="uint8",
    )  # fmt: skip


def draw(at: Attention, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    made = np.random.default_rng(seed)
    q = made.integers(0, 256, (at.batch, at.heads, at.queries, at.width), np.uint8)
    k, v = (made.integers(0, 256, (at.batch, at.kv_heads, at.keys, at.width), np.uint8) for _ in range(2))
    return q, k, v


def both(
    at: Attention, codes: tuple[NDArray[np.uint8], ...], scales: tuple[float, float, float, float],
    zeros: tuple[int, int, int, int], numbers: NDArray[np.float32] | None = None, rows: int = 4,
    isa: Isa = BEST,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:  # fmt: skip
    """What the kernel and what the formula return, [B, H, T, D]."""
    operands = (at.q, at.k, at.v)
    q_codes, k_codes, v_codes = (
        quantized(values, scale, zero) for values, scale, zero in zip(codes, scales, zeros, strict=False)
    )
    output = Output(
        scale=torch.tensor(scales[3]), zero_point=torch.tensor(zeros[3], dtype=torch.uint8),
        format="uint8",
    )  # fmt: skip
    scale = 1 / math.sqrt(at.width)
    wanted = formula.attention(
        q_codes, k_codes, v_codes, output, scale=scale, mask=spread(at, numbers), causal=at.causal
    )

    q, kv, y = (placed(np.full(x.plane.size, 77, np.uint8)) for x in (at.q, at.k, at.y))
    for operand, memory, values in zip(operands, (q, kv, kv), codes, strict=True):
        put(operand, memory, values)
    known = placed(np.array(formula.factors(q_codes, k_codes, v_codes, output, scale), np.float32))
    arguments = [q, kv, kv, *([] if numbers is None else [placed(numbers)]), known]
    arguments += [placed(np.array([zeros[0], zeros[2], zeros[3]], np.int32)), y]
    built(attention(at, isa, "attention", rows), isa)(*map(handed, arguments))
    found = taken(at.y, y, at.batch, at.heads, at.width).transpose(0, 2, 1, 3).copy()
    taken(at.y, y, at.batch, at.heads, at.width)[:] = 77
    assert (y == 77).all(), "something beside the result was written"
    return found, wanted.numpy()


def spread(at: Attention, numbers: NDArray[np.float32] | None) -> Tensor | None:
    if numbers is None or at.mask is None:
        return None
    return torch.from_numpy(numbers).as_strided((at.batch, at.heads, at.queries, at.keys), at.mask)


@st.composite
def layers(draw: st.DrawFn) -> Attention:
    batch, shared = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads = shared * draw(st.integers(1, 2))
    queries, keys = (draw(st.sampled_from([1, 3, 4, 5, 16, 17, 50, 63, 64, 65, 131])) for _ in range(2))
    shape = batch, heads, queries, keys
    every = heads * queries * keys, queries * keys, keys, 1
    kept = draw(st.one_of(st.none(), st.tuples(*[st.booleans()] * 4)))
    mask: Any = kept and tuple(
        s if keep and n > 1 else 0 for s, keep, n in zip(every, kept, shape, strict=True)
    )
    return layer(
        batch, heads, shared, queries, keys, draw(st.sampled_from([4, 20, 32, 64, 80, 96, 128])),
        causal=draw(st.booleans()), mask=mask,
        gap=draw(st.sampled_from([0, 5])),
    )  # fmt: skip


ZEROS = st.tuples(*[st.sampled_from([0, 7, 128, 255])] * 4)
SCALES = st.tuples(*[st.sampled_from([0.001, 0.01, 0.03, 0.3])] * 4)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa, at=layers(), scales=SCALES, zeros=ZEROS, rows=st.integers(1, 6), seed=st.integers(0, 1000)
)
def test_every_shape_and_mask(isa: Isa, at: Attention, scales: Any, zeros: Any, rows: int, seed: int) -> None:
    made = np.random.default_rng(seed)
    numbers = made.normal(0, 3, at.mask_size).astype(np.float32)
    numbers[made.random(at.mask_size) < 0.3] = -np.inf
    numbers[made.random(at.mask_size) < 0.1] = np.finfo(np.float32).min
    assert takes(at, isa)
    found, wanted = both(at, draw(at, seed), scales, zeros, None if at.mask is None else numbers, rows, isa)
    assert np.array_equal(found, wanted)


SMALL = layer(1, 2, 1, 5, 70, 32)
LIKE, ZERO = (0.02, 0.02, 0.02, 0.01), (120, 130, 110, 20)


def test_equal_scores_are_a_mean() -> None:
    q, k, v = draw(SMALL, 1)
    k[:] = 9
    found, wanted = both(SMALL, (q, k, v), LIKE, ZERO)
    assert np.array_equal(found, wanted)
    mean = (v.astype(float) - 110).mean(2, keepdims=True) * 0.02
    assert np.abs((found - 20.0) * 0.01 - mean.clip(-0.2, 2.35)).max() <= 0.01


def test_one_key_is_its_value() -> None:
    at = replace(
        SMALL, keys=1, k=replace(SMALL.k, plane=rows(1, 128)), v=replace(SMALL.v, plane=rows(1, 128))
    )
    q, k, v = draw(at, 2)
    found, wanted = both(at, (q, k, v), (0.02, 0.02, 0.02, 0.02), ZERO)
    assert np.array_equal(found, wanted)
    assert np.array_equal(found, np.broadcast_to((v.astype(int) - 110 + 20).clip(0, 255), found.shape))


@pytest.mark.parametrize("nothing", [-np.inf, np.finfo(np.float32).min])
def test_a_query_that_sees_no_key_is_zero(nothing: float) -> None:
    at = replace(SMALL, mask=(0, 0, 70, 1))
    numbers = np.zeros((5, 70), np.float32)
    numbers[2] = nothing
    found, wanted = both(at, draw(at, 3), LIKE, ZERO, numbers.reshape(-1))
    assert np.array_equal(found, wanted)
    assert (found[:, :, 2] == 20).all() and not (found[:, :, 1] == 20).all()


def test_causal_queries_before_the_first_key_are_zero() -> None:
    at = layer(1, 1, 1, 9, 4, 16, causal=True)
    found, wanted = both(at, draw(at, 4), LIKE, (128, 128, 128, 3))
    assert np.array_equal(found, wanted)
    assert (found[:, :, :5] == 3).all() and not (found[:, :, 5] == 3).all()


def coded(x: Tensor) -> Codes:
    """On the grid from its least to its largest number."""
    scale = (x.amax() - x.amin()) / 255
    zero = torch.round(-x.amin() / scale)
    values = (torch.round(x / scale) + zero).clamp(0, 255).to(torch.uint8)
    return Codes(values=values, scale=scale, zero_point=zero.to(torch.uint8), format="uint8")


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("causal", [False, True])
def test_distance_from_attention_of_floats(sharpness: float, causal: bool) -> None:
    """The formula against softmax of floats on what the codes mean, where only p and y are rounded."""
    torch.manual_seed(0)
    q, k, v = (coded(torch.randn(1, 4, 128, 64) * factor) for factor in (sharpness, 1, 1))
    exact = F.scaled_dot_product_attention(q.decoded(), k.decoded(), v.decoded(), is_causal=causal)
    like = coded(exact)
    output = Output(scale=like.scale, zero_point=like.zero_point, format="uint8")
    found = formula.attention(q, k, v, output, scale=1 / 8, causal=causal)
    assert (found.int() - like.values.int()).abs().max() <= 2
    assert sqnr(exact, replace(like, values=found).decoded()) > sqnr(exact, like.decoded()) - 3


def test_what_is_refused() -> None:
    assert not takes(replace(SMALL, width=30), BEST)
    assert not takes(replace(SMALL, kv_heads=3), BEST)
    assert not takes(replace(SMALL, mask=(0, 0, 140, 2)), BEST)
    assert takes(replace(SMALL, keys=33_000), BEST)
    assert not takes(replace(SMALL, keys=34_000), BEST)


def test_the_power_is_as_near_as_its_docstring_says() -> None:
    u = torch.linspace(-4, 8, 1_000_001)
    assert float((formula.power_of_two(u).double() / u.double().exp2() - 1).abs().max()) < 7.6e-5
    assert (torch.round(formula.power_of_two(torch.tensor([-torch.inf, -1e30, -100.0, -4.0]))) == 0).all()
