"""One new token of each sequence attends over a cache of 8-bit codes, in parts that are combined in order.

    y_t = (q . k_t) s_t scale log2(e)          of the part's tokens, whole steps of which make a part
    m = max y    p_t = 2^(y_t - m)    l = sum p_t    o = sum p_t v_t z_t        v_t codes, z_t their scales
    out = (((o_0 w_0 + o_1 w_1) + ...) / ((l_0 w_0 + l_1 w_1) + ...)        w_i = 2^(m_i - max m)

Within a part the maximum grows step by step, and what was summed is scaled down (Milakov and Gimelshein,
arXiv 1805.02867, algorithm 3); parts are those of flash-decoding (Dao et al., 2023). Tensor cores take 11
bits of q and of p_t z_t, relative to the largest of a head and of a head's step: both are divided by a power
of two first, so that no scale is too large or too small for float16. Codes are exact in it.
"""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from qcompiler.backends.triton.kernels.quantize import EXPONENT, TINY

LOG2E = tl.constexpr(1.4426950408889634)
ROWS = tl.constexpr(16)  # query heads of a program: tensor cores take no fewer


@triton.jit
def power_of(largest):
    """The power of two that a number starts from, and never one whose inverse is infinite."""
    bits = largest.to(tl.int32, bitcast=True) & EXPONENT
    return tl.maximum(bits.to(tl.float32, bitcast=True), TINY)


@triton.jit
def length_of(lengths, sequence, size):
    return tl.minimum(tl.maximum(tl.load(lengths + sequence), 0), size).to(tl.int32)


@triton.jit
def tokens_of_part(length, PARTS: tl.constexpr, STEP: tl.constexpr):
    return tl.cdiv(tl.cdiv(length, PARTS), STEP) * STEP


@triton.jit
def decode_parts(
    q,
    k_codes,
    k_scales,
    v_codes,
    v_scales,
    lengths,
    sums,
    peaks,
    totals,
    scale,
    heads,
    group,
    size,
    stride_q,
    stride_h,
    D: tl.constexpr,
    BD: tl.constexpr,
    PARTS: tl.constexpr,
    STEP: tl.constexpr,
):
    """q [B, heads group, D], codes [B, heads, size, D], scales [B, heads, size], lengths [B]
    -->  sums [B, heads group, PARTS, D], peaks and totals [B, heads group, PARTS].

    A program takes ROWS of the query heads of one head of the cache, and a part of its tokens: those of parts
    without any stay as they were.
    """
    blocks = tl.cdiv(group, ROWS)
    block, of = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    part = tl.program_id(1)
    sequence, head = of // heads, of % heads
    length = length_of(lengths, sequence, size)
    tokens = tokens_of_part(length, PARTS, STEP)
    first, end = part * tokens, tl.minimum((part + 1) * tokens, length)
    if first < end:
        row, d, t = block * ROWS + tl.arange(0, ROWS), tl.arange(0, BD), tl.arange(0, STEP)
        mine, there = row < group, d < D
        query = head * group + row
        beside = q + sequence.to(tl.int64) * stride_q + query[:, None] * stride_h + d[None, :]
        x = tl.load(beside, mask=mine[:, None] & there[None, :], other=0.0).to(tl.float32)
        power = power_of(tl.max(tl.abs(x), axis=1))
        x = tl.div_rn(x, power[:, None]).to(tl.float16)
        factor = power * (scale * LOG2E)
        base = of.to(tl.int64) * size + first
        from_k = k_codes + base * D + t[:, None] * D + d[None, :]
        from_v = v_codes + base * D + t[:, None] * D + d[None, :]
        from_s, from_z = k_scales + base + t, v_scales + base + t
        m = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        o = tl.zeros((ROWS, BD), tl.float32)
        for start in range(first, end, STEP):
            here = t < end - start
            if BD == D:
                k = tl.load(from_k, mask=here[:, None], other=0.0)
                v = tl.load(from_v, mask=here[:, None], other=0.0)
            else:
                k = tl.load(from_k, mask=here[:, None] & there[None, :], other=0.0)
                v = tl.load(from_v, mask=here[:, None] & there[None, :], other=0.0)
            s = tl.load(from_s, mask=here, other=0.0)
            z = tl.load(from_z, mask=here, other=0.0)
            y = tl.dot(x, k.to(tl.float16).T) * s[None, :] * factor[:, None]
            y = tl.where(here[None, :], y, float("-inf"))
            highest = tl.maximum(m, tl.max(y, axis=1))
            p = tl.exp2(y - highest[:, None])
            fade = tl.exp2(m - highest)
            w = p * z[None, :]
            unit = power_of(tl.max(tl.abs(w), axis=1))
            w = (w * tl.div_rn(1.0, unit)[:, None]).to(tl.float16)
            o = o * fade[:, None] + tl.dot(w, v.to(tl.float16)) * unit[:, None]
            total = total * fade + tl.sum(p, axis=1)
            m = highest
            from_k += STEP * D
            from_v += STEP * D
            from_s += STEP
            from_z += STEP
        place = (sequence.to(tl.int64) * heads * group + query) * PARTS + part
        tl.store(peaks + place, m, mask=mine)
        tl.store(totals + place, total, mask=mine)
        tl.store(sums + place[:, None] * D + d[None, :], o, mask=mine[:, None] & there[None, :])


@triton.jit
def decode_combined(
    sums,
    peaks,
    totals,
    lengths,
    out,
    size,
    heads,
    D: tl.constexpr,
    BD: tl.constexpr,
    PARTS: tl.constexpr,
    STEP: tl.constexpr,
):
    """sums [B, heads, PARTS, D], peaks, totals [B, heads, PARTS]  -->  out [B, heads, D].

    A program for each head of a query; where there are no tokens it stores zeros.
    """
    query = tl.program_id(0).to(tl.int64)
    length = length_of(lengths, query // heads, size)
    parts = tl.cdiv(length, tl.maximum(tokens_of_part(length, PARTS, STEP), 1))
    i, d = tl.arange(0, PARTS), tl.arange(0, BD)
    peak = tl.max(tl.load(peaks + query * PARTS + i, mask=i < parts, other=float("-inf")), axis=0)
    o = tl.zeros((BD,), tl.float32)
    total = 0.0
    for part in range(0, parts):
        place = query * PARTS + part
        weight = tl.exp2(tl.load(peaks + place) - peak)
        total += tl.load(totals + place) * weight
        o += tl.load(sums + place * D + d, mask=d < D, other=0.0) * weight
    o = tl.where(parts > 0, tl.div_rn(o, total), 0.0)
    tl.store(out + query * D + d, o.to(out.dtype.element_ty), mask=d < D)


def launch(
    q: Tensor, k_codes: Tensor, k_scales: Tensor, v_codes: Tensor, v_scales: Tensor, lengths: Tensor,
    scale: float, out: Tensor, sums: Tensor, peaks: Tensor, totals: Tensor, step: int,
    first: Mapping[str, int], second: Mapping[str, int],
) -> None:  # fmt: skip
    """Fill out [B, Hq, D]; sums [B, Hq, parts, D], peaks and totals [B, Hq, parts] in between.

    The cache, what is in between and out are contiguous; first and second are the options of both kernels.
    """
    (B, heads, size, D), group = k_codes.shape, q.shape[1] // k_codes.shape[1]
    shape = {"D": D, "BD": triton.next_power_of_2(D), "PARTS": sums.shape[2], "STEP": step}
    blocks = B * heads * triton.cdiv(group, ROWS.value)
    decode_parts[(blocks, sums.shape[2])](
        q, k_codes, k_scales, v_codes, v_scales, lengths, sums, peaks, totals, scale, heads, group, size,
        q.stride(0), q.stride(1), **shape, enable_fp_fusion=False, **first,
    )  # fmt: skip
    decode_combined[(B * q.shape[1],)](
        sums, peaks, totals, lengths, out, size, q.shape[1], **shape, enable_fp_fusion=False, **second
    )
