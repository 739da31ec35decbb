"""Sums over K in parts, which a second kernel adds in order.

    p_i = sum over the k of part i            int32, exact, or float32: left as they are, [parts, M, N]
    sum = ((p_0 + p_1) + p_2) + ...           in the type of the parts

Where tiles are fewer than a device has processors, so many times as many programs share the work. The order
is that of the parts, whatever the order of programs: the same bits each time.
"""

import triton
import triton.language as tl

from qcompiler.backends.triton.kernels.epilogue import put, store


@triton.jit
def part_of(K, BK: tl.constexpr, PARTS: tl.constexpr):
    """From which k on this program sums, and up to which: whole steps of BK, of the last ones maybe none.

    Programs of one part are neighbours on the second axis of the grid.
    """
    length = tl.cdiv(tl.cdiv(K, BK), PARTS) * BK
    start = tl.program_id(1) * length
    return start, tl.minimum(start + length, K)


@triton.jit
def put_part(y, partial, part, M, N, pitch, row, column, BM: tl.constexpr, BN: tl.constexpr):
    """A tile of sums into columns up to the N-th of partial [parts, M, pitch]."""
    put(y, partial + part.to(tl.int64) * M * pitch, M, N, pitch, row, column, BM, BN)


@triton.jit
def added(partial, parts, M, N, pitch, row, column, BM: tl.constexpr, BN: tl.constexpr):
    """[BM, BN], the sum of a tile over all parts; zeros behind the N-th column."""
    m = row * BM + tl.arange(0, BM)
    n = column * BN + tl.arange(0, BN)
    here = (m < M)[:, None] & (n < N)[None, :]
    line = partial + (row * BM).to(tl.int64) * pitch + tl.arange(0, BM)[:, None] * pitch + n[None, :]
    total = tl.zeros((BM, BN), partial.dtype.element_ty)
    for _ in range(parts):
        total += tl.load(line, mask=here, other=0)
        line += tl.cast(M, tl.int64) * pitch
    return total


@triton.jit
def product_total(
    partial,
    out,
    a_scale,
    b_scale,
    bias,
    residual,
    scale,
    amax,
    parts,
    M,
    N,
    stride_out,
    stride_residual,
    ACTIVATION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """partial int32 or float32 [parts, M, N]; what happens to the sums is said in `epilogue`."""
    row = tl.program_id(0)  # the axis that has room for any number of them
    column = tl.program_id(1)
    acc = added(partial, parts, M, N, N, row, column, BM, BN)
    store(
        acc, out, a_scale, b_scale, bias, residual, scale, amax, M, N, stride_out, stride_residual,
        row, column, BM, BN, ACTIVATION,
    )  # fmt: skip
