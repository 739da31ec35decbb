"""Attention of one new token over a cache of 8-bit keys and values, and how the token gets into it.

    triton_append_kv           k, v  -->  codes and scales at their places, in place
    triton_decode_attention    softmax((q . k_t) s_t scale) over the tokens t of a sequence, times v_t z_t

A cache has codes [B, heads, S, D], int8 or e4m3, and for each head and token a scale, float32 [B, heads, S].
Query heads share heads of the cache in groups, neighbours first (arXiv 2305.13245).
"""

from math import isfinite

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import chosen
from qcompiler.backends.triton.ops.alignment import begins_evenly, even
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.quantize import CODES, MULTIPLE, quantize_rows
from qcompiler.errors import InputError

PARTS = 16  # of a sequence, whose results are combined in their order
STEP = 64  # tokens; a part has whole steps
WIDEST = 256  # numbers of a head
LOG2E = 1.4426950408889634
NARROW = 128  # and more numbers of a head want more threads
MODES = {torch.int8: "", torch.float8_e4m3fn: "e4m3"}
"""Of configurations, by the type of codes."""


@torch.library.custom_op("qcompiler::triton_decode_attention", mutates_args=(), device_types="cpu")
def decode_attention(
    q: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    v_codes: Tensor,
    v_scales: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """q [B, Hq, D], a cache, lengths int32 or int64 [B]  -->  [B, Hq, D] of q's type.

    A sequence has its first `lengths` tokens, S at most, in PARTS parts of whole STEPs:

        y_t = (q . k_t) s_t (scale log2(e))    m = max y    p_t = 2^(y_t - m)    l = sum p_t
        o = sum p_t z_t v_t    out = ((o_0 w_0 + o_1 w_1) + ...) / ((l_0 w_0 + l_1 w_1) + ...)
        w_i = 2^(m_i - max m)

    in float32, as flash-decoding has it (Dao et al., 2023). The result depends neither on S nor on what else
    is in the batch. On a GPU, q and p_t z_t are rounded to 11 bits, relative to the largest of a head and of
    a head in a step. Without tokens the result is zero; a scale or a q that is not finite makes NaN of its
    heads.
    """
    checked(q, k_codes, k_scales, v_codes, v_scales, lengths, scale)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    group = q.shape[1] // k_codes.shape[1]
    for b, length in enumerate(lengths.tolist()):
        n = min(length, k_codes.shape[2])
        if n < 1:
            continue
        k, v = (codes[b, :, :n].float() for codes in (k_codes, v_codes))
        s, z = k_scales[b, :, None, :n], v_scales[b, :, :n, None]
        y = (q[b].float().reshape(-1, group, k.shape[2]) @ k.mT) * s * (scale * LOG2E)
        size = tokens_of_part(n)
        parts = zip(torch.split(y, size, 2), torch.split(z * v, size, 1), strict=True)
        found = [part_of(*part) for part in parts]
        peak = torch.stack([m for m, _, _ in found]).amax(0)
        above = below = torch.zeros(())
        for m, total, o in found:
            weight = torch.exp2(m - peak)
            above, below = above + o * weight, below + total * weight
        out[b] = (above / below).flatten(0, 1).to(q.dtype)
    return out


def part_of(y: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(m, l, o) of a part's tokens: y [heads, group, n], v [heads, n, D]."""
    m = y.amax(2, keepdim=True)
    p = torch.exp2(y - m)
    return m, p.sum(2, keepdim=True), p @ v


def tokens_of_part(length: int) -> int:
    return -(-length // (PARTS * STEP)) * STEP


@decode_attention.register_fake
def _(
    q: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    v_codes: Tensor,
    v_scales: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    return q.new_empty(q.shape)


@decode_attention.register_kernel("cuda")
def decode_on_cuda(
    q: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    v_codes: Tensor,
    v_scales: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    from qcompiler.backends.triton.kernels.attention import launch

    checked(q, k_codes, k_scales, v_codes, v_scales, lengths, scale)
    wide = "wide" if q.shape[2] > NARROW else ""
    first = chosen("decode_parts", capability(q.device), mode=f"{MODES[k_codes.dtype]} {wide}".strip())
    second = chosen("decode_combined", capability(q.device))
    out = q.new_empty(q.shape)
    sums = q.new_empty((*q.shape[:2], PARTS, q.shape[2]), dtype=torch.float32)
    peaks, totals = q.new_empty((2, *q.shape[:2], PARTS), dtype=torch.float32)
    with torch.cuda.device(q.device):
        launch(
            even(q), k_codes, k_scales, v_codes, v_scales, even(lengths), scale, out, sums, peaks, totals,
            STEP, first.options, second.options,
        )  # fmt: skip
    return out


@torch.library.custom_op(
    "qcompiler::triton_append_kv",
    mutates_args=("k_codes", "k_scales", "v_codes", "v_scales"),
    device_types="cpu",
)
def append_kv(
    k_codes: Tensor,
    k_scales: Tensor,
    v_codes: Tensor,
    v_scales: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
) -> None:
    """k, v [B, heads, D] become token positions[b] of each sequence; int32 or int64 [B].

    Codes and scales are those of `triton_quantize_rows`: a row with NaN or an infinity has scale NaN and
    codes 0. A token whose position the cache does not have is not written: to refuse it, one would have to
    wait for the device.
    """
    checked_token(k_codes, k_scales, v_codes, v_scales, k, v, positions)
    b = ((positions >= 0) & (positions < k_codes.shape[2])).nonzero().flatten()
    at = positions[b].long()
    for x, codes, scales in ((k, k_codes, k_scales), (v, v_codes, v_scales)):
        made, scale = quantize_rows(x.flatten(0, 1), format_of(codes))
        codes[b, :, at] = made.view(x.shape)[b]
        scales[b, :, at] = scale.view(x.shape[:2])[b]


@append_kv.register_fake
def _(
    k_codes: Tensor,
    k_scales: Tensor,
    v_codes: Tensor,
    v_scales: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
) -> None:
    return None


@append_kv.register_kernel("cuda")
def append_on_cuda(
    k_codes: Tensor,
    k_scales: Tensor,
    v_codes: Tensor,
    v_scales: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
) -> None:
    from qcompiler.backends.triton.kernels.cache import launch

    checked_token(k_codes, k_scales, v_codes, v_scales, k, v, positions)
    row = chosen("append_kv", capability(k.device), mode=MODES[k_codes.dtype])
    with torch.cuda.device(k.device):
        launch(
            k_codes, k_scales, v_codes, v_scales, even(k.contiguous()), even(v.contiguous()),
            even(positions), format_of(k_codes), row.constants["BLOCK"], row.options,
        )  # fmt: skip


def format_of(codes: Tensor) -> str:
    return next(name for name, (dtype, _) in CODES.items() if dtype == codes.dtype)


def checked(
    q: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    v_codes: Tensor,
    v_scales: Tensor,
    lengths: Tensor,
    scale: float,
) -> None:
    """InputError where operands do not fit one another or lie otherwise than kernels read them."""
    checked_cache(k_codes, k_scales, v_codes, v_scales, lengths, "lengths")
    B, heads, _, D = k_codes.shape
    is_fit = q.dim() == 3 and q.is_floating_point() and q.shape[0] == B and q.shape[2] == D
    if not is_fit or q.shape[1] == 0 or q.shape[1] % heads or q.stride(2) != 1 or q.device != k_codes.device:
        raise InputError(
            f"queries {q.dtype} {[*q.shape]} with strides {q.stride()} on {q.device}",
            why=f"floats [{B}, a multiple of {heads}, {D}] on {k_codes.device} are wanted, those of a head "
            "side by side",
        )
    if not isfinite(scale):
        raise InputError(f"scores times {scale}", why="a finite number is wanted", fix=f"use {D}^-0.5")


def checked_token(
    k_codes: Tensor,
    k_scales: Tensor,
    v_codes: Tensor,
    v_scales: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
) -> None:
    checked_cache(k_codes, k_scales, v_codes, v_scales, positions, "positions")
    B, heads, _, D = wanted = k_codes.shape
    for x in (k, v):
        if x.shape != (B, heads, D) or not x.is_floating_point() or x.device != k_codes.device:
            raise InputError(
                f"a token's rows {x.dtype} {[*x.shape]} on {x.device}",
                why=f"floats [{B}, {heads}, {D}] on {k_codes.device} are wanted for a cache {[*wanted]}",
            )
    if k.dtype != v.dtype:
        raise InputError(f"keys of {k.dtype} and values of {v.dtype}", why="both are wanted of one type")


def checked_cache(
    k_codes: Tensor, k_scales: Tensor, v_codes: Tensor, v_scales: Tensor, numbers: Tensor, what: str
) -> None:
    """numbers: one for each sequence, of tokens."""
    both = (k_codes, v_codes)
    if k_codes.dim() != 4 or k_codes.dtype not in MODES or any(x.shape != k_codes.shape for x in both):
        raise InputError(
            f"a cache of {k_codes.dtype} {[*k_codes.shape]} and {v_codes.dtype} {[*v_codes.shape]}",
            why="int8 or e4m3 codes [sequences, heads, tokens, size of a head] are wanted, twice",
        )
    B, heads, S, D = k_codes.shape
    if B * heads == 0 or S < 1 or S * D >= 2**31:
        raise InputError(
            f"a cache of {B} sequences, {heads} heads and {S} tokens of {D}",
            why="each must be there, and a head has fewer than 2^31 codes",
        )
    if D % MULTIPLE or not 0 < D <= WIDEST:
        raise InputError(
            f"heads of {D}",
            why=f"a multiple of {MULTIPLE} up to {WIDEST} is wanted",
            fix="pad them with zeros",
        )
    given = (("scales of keys", k_scales, (B, heads, S)), ("scales of values", v_scales, (B, heads, S)))
    for name, x, shape in given:
        if x.shape != shape or x.dtype != torch.float32 or x.device != k_codes.device:
            raise InputError(
                f"{name} {x.dtype} {[*x.shape]} on {x.device}",
                why=f"float32 {[*shape]} on {k_codes.device} is wanted",
            )
    if v_codes.dtype != k_codes.dtype or v_codes.device != k_codes.device:
        raise InputError(
            f"keys of {k_codes.dtype} on {k_codes.device}, values of {v_codes.dtype} on {v_codes.device}",
            why="both are wanted of one type and in one place",
        )
    if any(not (x.is_contiguous() and begins_evenly(x)) for x in (*both, k_scales, v_scales)):
        raise InputError(
            "a cache with gaps, in another order, or that begins within a load",
            why="kernels read rows of codes one after another, 16 bytes at a time",
            fix="let codes and scales be tensors of their own",
        )  # fmt: skip
    if (
        numbers.shape != (B,)
        or numbers.dtype not in (torch.int32, torch.int64)
        or not numbers.is_contiguous()
    ):
        raise InputError(
            f"{what} {numbers.dtype} {[*numbers.shape]}", why=f"int32 or int64 [{B}] is wanted, contiguous"
        )
    if numbers.device != k_codes.device:
        raise InputError(f"{what} on {numbers.device}", why=f"the cache is on {k_codes.device}")
