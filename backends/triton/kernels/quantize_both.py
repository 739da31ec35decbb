"""A matrix to codes of 8 bits in both orders, with a scale for each row of either.

    s_m = max_k |x| / L        q[m, k] = clamp(rne(x[m, k] / s_m), -L, L)        [M, K]
    t_k = max_m |x| / L        r[k, m] = clamp(rne(x[m, k] / t_k), -L, L)        [K, M]

A scale may not vary along what a product sums over, and forward and backward sum over different axes: hence
two sets of codes. They are bit for bit those of `quantize_rows`, of x and of its transpose. x is read twice,
since a column does not fit on a chip: of 16 bits, 6 bytes move for an element. Quantizing the rows of x and
of a transposed copy would move 10.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcompiler.backends.triton.kernels.draws import signed
from qcompiler.backends.triton.kernels.quantize import FORMATS, codes_of, magnitude, scale_of
from qcompiler.backends.triton.kernels.stochastic import drawn_codes_of, draws


@triton.jit
def within(x, first, stride, second, SIZE: tl.constexpr):
    """Pointers [SIZE, ...] to rows from the first on; its place takes 64 bits, what is beyond it 32."""
    return x + first.to(tl.int64) * stride + tl.arange(0, SIZE)[:, None] * stride + second[None, :]


@triton.jit
def tile(x, first_m, first_k, M, K, stride, BM: tl.constexpr, BK: tl.constexpr):
    """[BM, BK] in float32, zeros outside of x."""
    m, k = first_m + tl.arange(0, BM), first_k + tl.arange(0, BK)
    here = (m < M)[:, None] & (k < K)[None, :]
    return tl.load(within(x, first_m, stride, k, BM), mask=here, other=0.0).to(tl.float32)


@triton.jit
def amax_both(x, rows, columns, M, K, stride_x, BM: tl.constexpr, BK: tl.constexpr):
    """x [M, K]  -->  the bits of max |x| of each row [M] and column [K], int32, which begin as zeros.

    Of numbers that are not negative the bits have the order of the numbers. A maximum is the same in
    whatever order programs come to it.
    """
    across = tl.cdiv(K, BK)
    first_m, first_k = tl.program_id(0) // across * BM, tl.program_id(0) % across * BK
    m, k = first_m + tl.arange(0, BM), first_k + tl.arange(0, BK)
    size = magnitude(tile(x, first_m, first_k, M, K, stride_x, BM, BK))
    tl.atomic_max(rows + m, tl.max(size, axis=1).to(tl.int32, bitcast=True), mask=m < M, sem="relaxed")
    tl.atomic_max(columns + k, tl.max(size, axis=0).to(tl.int32, bitcast=True), mask=k < K, sem="relaxed")


@triton.jit
def scales_of(amax, at, end, LARGEST: tl.constexpr):
    """From the bits that `amax_both` found; 1 past the end."""
    bits = tl.load(amax + at, mask=at < end, other=0)
    return scale_of(bits.to(tl.float32, bitcast=True), LARGEST)


@triton.jit(do_not_specialize=("tensor",))
def quantize_both(
    x,
    rows,
    columns,
    codes,
    scales,
    turned,
    turned_scales,
    M,
    K,
    width,
    turned_width,
    stride_x,
    stride_codes,
    stride_turned,
    key,
    tensor,
    ROW_PURPOSE: tl.constexpr,
    COLUMN_PURPOSE: tl.constexpr,
    EVEN: tl.constexpr,
    LARGEST: tl.constexpr,
    MANTISSA: tl.constexpr,
    NORMAL: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """x [M, K] and what `amax_both` found  -->  codes [M, width], turned [K, turned_width], scales of both.

    Behind the K-th and the M-th code of a row lie zeros. One program for each tile, which is read once. With
    a key codes are drawn: of x by elements m K + k, of its transpose by elements k M + m, for two purposes.
    EVEN: whether 4 divides M and K.
    """
    across = tl.cdiv(width, BK)
    first_m, first_k = tl.program_id(0) // across * BM, tl.program_id(0) % across * BK
    m, k = first_m + tl.arange(0, BM), first_k + tl.arange(0, BK)
    values = tile(x, first_m, first_k, M, K, stride_x, BM, BK)

    scale = scales_of(rows, m, M, LARGEST)
    if key is None:
        found = codes_of(values, scale[:, None], LARGEST, MANTISSA, NORMAL)
    else:
        noise = draws(key, tensor, ROW_PURPOSE, first_m, first_k, K, BM, BK, EVEN)
        found = drawn_codes_of(values, scale[:, None], noise, LARGEST, MANTISSA, NORMAL)
    here = (m < M)[:, None] & (k < width)[None, :]
    tl.store(within(codes, first_m, stride_codes, k, BM), found.to(codes.dtype.element_ty), mask=here)
    tl.store(scales + m, scale, mask=(m < M) & (first_k == 0))

    scale = scales_of(columns, k, K, LARGEST)
    if key is None:
        found = codes_of(values, scale[None, :], LARGEST, MANTISSA, NORMAL)
    else:
        noise = draws(key, tensor, COLUMN_PURPOSE, first_k, first_m, M, BK, BM, EVEN).T
        found = drawn_codes_of(values, scale[None, :], noise, LARGEST, MANTISSA, NORMAL)
    here = (k < K)[:, None] & (m < turned_width)[None, :]
    tl.store(within(turned, first_k, stride_turned, m, BK), found.to(codes.dtype.element_ty).T, mask=here)
    tl.store(turned_scales + k, scale, mask=(k < K) & (first_m == 0))


def launch(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    turned: Tensor,
    turned_scales: Tensor,
    format: str,
    key: Tensor | None,
    tensor: int,
    purposes: tuple[int, int],
    amax: Mapping[str, Any],
    quantize: Mapping[str, Any],
) -> None:
    """Fill codes [M, width], turned [K, turned_width] and scales [M] and [K] from x [M, K].

    key: int64 [3], contiguous, or None for the nearest codes. purposes: of draws for codes and for turned
    codes. amax, quantize: constants and options of the kernels.
    """
    M, K = x.shape
    width, turned_width = codes.shape[1], turned.shape[1]
    begin = triton.cdiv(M, 4) * 4  # words: the maxima of columns begin at 16 bytes, too
    rows, columns = torch.zeros(begin + K, dtype=torch.int32, device=x.device).split((begin, K))
    amax_both[(triton.cdiv(M, amax["BM"]) * triton.cdiv(K, amax["BK"]),)](
        x, rows, columns, M, K, x.stride(0), **amax, enable_fp_fusion=False
    )
    quantize_both[(triton.cdiv(turned_width, quantize["BM"]) * triton.cdiv(width, quantize["BK"]),)](
        x, rows, columns, codes, scales, turned, turned_scales, M, K, width, turned_width,
        x.stride(0), codes.stride(0), turned.stride(0), key, signed(tensor),
        ROW_PURPOSE=purposes[0], COLUMN_PURPOSE=purposes[1],
        **FORMATS[format], **quantize, enable_fp_fusion=False,
    )  # fmt: skip
