"""A product of codes, A Bᵀ with all that happens to it on its way out; int8 and FP8 differ in their sums.

Tiles go to programs in one of three ways:

    SPLIT 1, PERSISTENT 0     one program for each tile
    SPLIT n > 1               one for each tile and each of n parts of K; `parts` says who adds them
    PERSISTENT n > 0          n for each processor, which walk over the tiles: loads of the next tile begin
                              before results of the last are stored
"""

import triton
import triton.language as tl

from qcompiler.backends.triton.kernels.epilogue import store
from qcompiler.backends.triton.kernels.parts import part_of, put_part
from qcompiler.backends.triton.kernels.tile import operand, place_of, sums, tile_of


@triton.jit
def product(
    a,
    b,
    out,
    a_scale,
    b_scale,
    bias,
    residual,
    scale,
    amax,
    partial,
    M,
    N,
    K,
    stride_a,
    stride_b,
    stride_out,
    stride_residual,
    ACTIVATION: tl.constexpr,
    EXACT: tl.constexpr,
    PROMOTE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SPLIT: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    """a [M, K], b [N, K], K at least 1; partial [SPLIT, M, N] where there are parts, of what sums are in."""
    left = operand(a, M, K, stride_a, BM, BK, DESCRIPTORS)
    right = operand(b, N, K, stride_b, BN, BK, DESCRIPTORS)
    if SPLIT > 1:
        tl.static_assert(PERSISTENT == 0)
        row, column = tile_of(M, N, BM, BN, GROUP)
        start, end = part_of(K, BK, SPLIT)
        acc = sums(
            left, right, M, N, start, end, stride_a, stride_b, row, column, BM, BN, BK, EXACT, PROMOTE,
            DESCRIPTORS,
        )  # fmt: skip
        put_part(acc, partial, tl.program_id(1), M, N, N, row, column, BM, BN)
    elif PERSISTENT > 0:
        # Flattened, the loops over tiles and over k are one, and are pipelined as one. K is not 0, or else
        # a loop over k without a turn would be given one (triton#11656); where that is known, no code is made
        # for such loops.
        tl.assume(K > 0)
        step = tl.num_programs(0)
        stored = tl.program_id(0) - step
        for index in tl.range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(N, BN), step, flatten=True):
            row, column = place_of(index, M, N, BM, BN, GROUP)
            acc = sums(
                left, right, M, N, 0, K, stride_a, stride_b, row, column, BM, BN, BK, EXACT, PROMOTE,
                DESCRIPTORS,
            )  # fmt: skip
            stored += step  # the same number, counted anew: loads run ahead of it
            row, column = place_of(stored, M, N, BM, BN, GROUP)
            store(
                acc, out, a_scale, b_scale, bias, residual, scale, amax, M, N, stride_out, stride_residual,
                row, column, BM, BN, ACTIVATION,
            )  # fmt: skip
    else:
        row, column = tile_of(M, N, BM, BN, GROUP)
        acc = sums(
            left, right, M, N, 0, K, stride_a, stride_b, row, column, BM, BN, BK, EXACT, PROMOTE, DESCRIPTORS
        )
        store(
            acc, out, a_scale, b_scale, bias, residual, scale, amax, M, N, stride_out, stride_residual,
            row, column, BM, BN, ACTIVATION,
        )  # fmt: skip
