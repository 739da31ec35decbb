"""Floats times weights of few bits: codes are decoded in registers, groups are scaled after their sums.

    p[m, n, g] = sum of (u[n, k] - z[n, g]) x[m, k] over the k of group g        u - z is an exact integer
    y[m, n] = act(sum over g of s[n, g] p[m, n, g] + bias_n) + residual[m, n]

A byte holds codes that are H = G b / 8 apart (`layouts`): masks and shifts of a row of H bytes are 8 / b rows
of H codes, for as many parts of x. GATED: w holds two weights, one above the other, of N rows each:

    y[m, n] = act(sum of row n + bias_n) (sum of row N + n + bias_(N + n)) + residual[m, n]

SPLIT: each program adds some of the groups and leaves its sums in float32, [parts, M, rows of w], for
`weight_only_total`.

Decoding is most of the work beside waiting for memory. No code is converted: one that is put into the lowest
bits of 2^i, where those count by ones, is the number 2^i + u, from which 2^i + z is subtracted exactly.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcompiler.backends.triton.kernels.epilogue import finish
from qcompiler.backends.triton.kernels.launching import pitch
from qcompiler.backends.triton.kernels.parts import added, put_part
from qcompiler.backends.triton.kernels.tile import rows_of, tile_of

FLOAT32 = 0x4B000000  # the bits of 2^23, below which 23 bits count by ones
BITS32 = tl.constexpr(FLOAT32)
UNITS32 = tl.constexpr(2.0**23)
BFLOAT16 = tl.constexpr(0x4300)  # of 2^7, where 7 bits count
UNITS_BFLOAT16 = tl.constexpr(2.0**7)
FLOAT16 = tl.constexpr(0x6400)  # of 2^10, where 10 bits do
UNITS_FLOAT16 = tl.constexpr(2.0**10)


# ---------------------------------------------------------------- one row of x


@triton.jit
def weight_only_gemv(
    x,
    w,
    scales,
    zeros,
    bias,
    residual,
    out,
    N,
    width,
    runs,
    float32,
    BITS: tl.constexpr,
    G: tl.constexpr,
    GATED: tl.constexpr,
    SPLIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RUN: tl.constexpr,
    HALVINGS: tl.constexpr,
    BN: tl.constexpr,
):
    """M = 1; width: bytes of a row of w. One program for BN outputs and a part of K, of `runs` runs of RUN k.

    float32: the bits of 2^23, as an argument, since mask and sum with one constant are one instruction, and
    with two constants two.
    """
    column = tl.program_id(0)
    part = tl.program_id(1)
    start = part * runs
    y = line_sums(x, w, scales, zeros, column * BN, width, start, runs, float32, BITS, G, RUN, HALVINGS, BN)
    y = y[None, :]
    beside = None
    if GATED:
        below = column * BN + N
        beside = line_sums(
            x, w, scales, zeros, below, width, start, runs, float32, BITS, G, RUN, HALVINGS, BN
        )
        beside = beside[None, :]
    leave(
        y, beside, out, bias, residual, 1, N, N, N, part, tl.program_id(2), column, 1, BN, SPLIT, ACTIVATION
    )


@triton.jit
def line_sums(
    x,
    w,
    scales,
    zeros,
    first,
    width,
    start,
    count,
    float32,
    BITS: tl.constexpr,
    G: tl.constexpr,
    RUN: tl.constexpr,
    HALVINGS: tl.constexpr,
    BN: tl.constexpr,
):
    """[BN], from row `first` of w on: lane i adds the i-th group of every run, then neighbours are added.

    Bytes are read as words of four, and x as words of four numbers: byte i of a word multiplies number i.
    """
    PARTS: tl.constexpr = 8 // BITS
    H: tl.constexpr = G // PARTS
    W: tl.constexpr = H // 4
    LANES: tl.constexpr = RUN // G
    groups = width // H
    words = width // 4
    n = tl.arange(0, BN)
    lane = tl.arange(0, LANES)
    word = tl.arange(0, W)
    from_x = x.to(tl.pointer_type(tl.int64)) + (lane * (G // 4))[:, None] + word[None, :]
    from_w = w.to(tl.pointer_type(tl.int32)) + first.to(tl.int64) * words
    from_w = from_w + n[:, None, None] * words + (lane * W)[None, :, None] + word[None, None, :]
    from_s = (first + n)[:, None] * groups + lane[None, :]
    acc = tl.zeros((BN, LANES), tl.float32)
    for run in range(start, start + count):
        here = lane < groups - run * LANES
        q = tl.load(from_w + run * (LANES * W), mask=here[None, :, None], other=0)
        s = tl.load(scales + from_s + run * LANES, mask=here[None, :], other=0.0).to(tl.float32)
        z = tl.full((BN, LANES), 1 << (BITS - 1), tl.float32)
        if zeros is not None:
            z = tl.load(zeros + from_s + run * LANES, mask=here[None, :], other=0).to(tl.float32)
        p = tl.zeros((BN, LANES, W), tl.float32)
        for i in tl.static_range(PARTS):
            four = tl.load(from_x + run * (RUN // 4) + i * W, mask=here[:, None], other=0)
            for byte in tl.static_range(4):
                p = term(
                    p, q >> (byte // 2 * 16), z, four >> (byte * 16), x.dtype.element_ty, float32,
                    (1 << BITS) - 1, 1 << (byte % 2 * 8 + i * BITS),
                )  # fmt: skip
        acc += tl.sum(p, axis=2) * s
    for i in tl.static_range(HALVINGS):
        acc = tl.sum(tl.reshape(acc, (BN, LANES >> (i + 1), 2)), axis=2)
    return tl.reshape(acc, (BN,))


@triton.jit
def term(p, q, z, x, kind: tl.constexpr, float32, MASK: tl.constexpr, UNIT: tl.constexpr):
    """p + (u - z) x, of codes u that stand in words from the bit UNIT on, and x in the lowest 16 bits.

    2^23 + u UNIT less 2^23 + z UNIT is exact, as x / UNIT is, and their product, of 9 and of 11 bits at most:
    that it is added without being rounded before changes nothing.
    """
    u = ((q & (MASK * UNIT)) | float32).to(tl.float32, bitcast=True)
    steps = u - (z * UNIT + UNITS32)[:, :, None]
    v = x.to(tl.int16).to(kind, bitcast=True).to(tl.float32) * (1.0 / UNIT)
    return tl.fma(steps, tl.broadcast_to(v[None, :, :], p.shape), p)


# ---------------------------------------------------------------- more rows of x


@triton.jit
def weight_only_gemm(
    x,
    w,
    scales,
    zeros,
    bias,
    residual,
    out,
    M,
    N,
    width,
    groups_of_part,
    stride_x,
    stride_out,
    stride_residual,
    BITS: tl.constexpr,
    G: tl.constexpr,
    GATED: tl.constexpr,
    SPLIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GROUP: tl.constexpr,
):
    """width: bytes of a row of w. One program for each tile and part of the groups."""
    column, row = tile_of(N, M, BN, BM, GROUP)
    part = tl.program_id(1)
    groups = width // (G * BITS // 8)
    start = part * groups_of_part
    count = tl.minimum(groups_of_part, groups - start)
    y = tile_sums(
        x, w, scales, zeros, M, N, width, stride_x, row, column, start, count, BITS, G, BM, BN
    ).T  # fmt: skip
    beside = None
    if GATED:
        below = tl.cast(N, tl.int64)
        z = zeros if zeros is None else zeros + below * groups
        beside = tile_sums(
            x, w + below * width, scales + below * groups, z, M, N, width, stride_x, row, column, start,
            count, BITS, G, BM, BN,
        ).T  # fmt: skip
    leave(
        y, beside, out, bias, residual, M, N, stride_out, stride_residual, part, row, column, BM, BN, SPLIT,
        ACTIVATION,
    )  # fmt: skip


@triton.jit
def tile_sums(
    x,
    w,
    scales,
    zeros,
    M,
    N,
    width,
    stride_x,
    row,
    column,
    start,
    count,
    BITS: tl.constexpr,
    G: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """[BN, BM]: the weight is the left operand, which may come from registers, where it is decoded."""
    PARTS: tl.constexpr = 8 // BITS
    H: tl.constexpr = G // PARTS
    groups = width // H
    along = tl.arange(0, H)
    n = tl.minimum(column * BN + tl.arange(0, BN), N - 1)
    from_w = rows_of(w, column, N, width, BN)[:, None] + (start * H + along)[None, :]
    from_x = rows_of(x, row, M, stride_x, BM)[None, :] + (start * G + along)[:, None]
    acc = tl.zeros((BN, BM), tl.float32)
    for g in range(start, start + count):
        q = tl.load(from_w)
        s = tl.load(scales + n * groups + g).to(tl.float32)
        z = None if zeros is None else tl.load(zeros + n * groups + g)[:, None]
        p = tl.zeros((BN, BM), tl.float32)
        for i in tl.static_range(PARTS):
            steps = steps_of((q >> (i * BITS)) & ((1 << BITS) - 1), z, x.dtype.element_ty, BITS)
            p = tl.dot(steps, tl.load(from_x + i * H), p)
        acc += p * s[:, None]
        from_w += H
        from_x += G
    return acc


@triton.jit
def steps_of(u, z, kind: tl.constexpr, BITS: tl.constexpr):
    """u - z, exact in a type of 16 bits: of 4 bits or 2 within that type, of 8 by way of float32.

    Where z is the same for all it is a number: as a tensor, it would have u go through shared memory.
    """
    narrow: tl.constexpr = UNITS_BFLOAT16 if kind == tl.bfloat16 else UNITS_FLOAT16
    units: tl.constexpr = UNITS32 if BITS == 8 else narrow
    if BITS == 8:
        left = (u.to(tl.int32) | BITS32).to(tl.float32, bitcast=True)
    else:
        bits: tl.constexpr = BFLOAT16 if kind == tl.bfloat16 else FLOAT16
        left = (u.to(tl.int16) | bits).to(kind, bitcast=True)
    if z is None:
        right = units + (1 << (BITS - 1))
    elif BITS == 8:
        right = (z.to(tl.int32) | BITS32).to(tl.float32, bitcast=True)
    else:
        right = (z.to(tl.int16) | bits).to(kind, bitcast=True)
    return (left - right).to(kind)


# ---------------------------------------------------------------- both


@triton.jit
def leave(
    y,
    beside,
    out,
    bias,
    residual,
    M,
    N,
    stride_out,
    stride_residual,
    part,
    row,
    column,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPLIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Results, or where SPLIT the sums of a part as they are."""
    if SPLIT:
        rows = N if beside is None else 2 * N
        put_part(y, out, part, M, N, rows, row, column, BM, BN)
        if beside is not None:
            put_part(beside, out + N, part, M, N, rows, row, column, BM, BN)
    else:
        finish(
            y, beside, out, bias, residual, M, N, stride_out, stride_residual, row, column, BM, BN, ACTIVATION
        )


@triton.jit
def weight_only_total(
    sums,
    bias,
    residual,
    out,
    parts,
    M,
    N,
    stride_out,
    stride_residual,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BN: tl.constexpr,
):
    """sums float32 [parts, M, N or 2 N]: parts are added in order, by one program for BN outputs of a row."""
    column = tl.program_id(0)
    row = tl.program_id(1)
    rows = 2 * N if GATED else N
    y = added(sums, parts, M, N, rows, row, column, 1, BN)
    beside = added(sums + N, parts, M, N, rows, row, column, 1, BN) if GATED else None
    finish(y, beside, out, bias, residual, M, N, stride_out, stride_residual, row, column, 1, BN, ACTIVATION)


# ---------------------------------------------------------------- launching


def launch(
    x: Tensor,
    w: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    bits: int,
    group: int,
    gated: bool,
    activation: str,
    run: int,
    parts: int,
    product: tuple[Mapping[str, Any], Mapping[str, int]],
    total: tuple[Mapping[str, Any], Mapping[str, int]],
) -> None:
    """Fill out [M, N]. product and total: constants and options of the kernels.

    run: how many k are summed side by side where M = 1. parts: into how many parts runs, or groups where
    M > 1, are split; their sums are in memory that is gone afterwards.
    """
    (M, N), width = out.shape, w.shape[1]
    constants, options = product
    fixed = {"BITS": bits, "G": group, "GATED": gated, "SPLIT": parts > 1}
    target = out if parts == 1 else out.new_empty((parts, M, w.shape[0]), dtype=torch.float32)
    beside = 0 if residual is None else pitch(residual)
    common = {"ACTIVATION": activation, "enable_fp_fusion": False}
    if M == 1:
        runs = triton.cdiv(triton.cdiv(x.shape[1], run), parts)
        weight_only_gemv[(triton.cdiv(N, constants["BN"]), parts)](
            x, w, scales, zeros, bias, residual, target, N, width, runs, FLOAT32,
            **fixed, **common, RUN=run, HALVINGS=(run // group).bit_length() - 1, **constants, **options,
        )  # fmt: skip
    else:
        tiles = triton.cdiv(M, constants["BM"]) * triton.cdiv(N, constants["BN"])
        weight_only_gemm[(tiles, parts)](
            x, w, scales, zeros, bias, residual, target, M, N, width,
            triton.cdiv(x.shape[1] // group, parts), pitch(x), pitch(out), beside,
            **fixed, **common, **constants, **options,
        )  # fmt: skip
    if parts > 1:
        constants, options = total
        weight_only_total[(triton.cdiv(N, constants["BN"]), M)](
            target, bias, residual, out, parts, M, N, pitch(out), beside,
            GATED=gated, **common, **constants, **options,
        )  # fmt: skip
