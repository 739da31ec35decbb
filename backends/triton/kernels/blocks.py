"""FP8 with a scale for each 128 along k: what makes the codes, and the product that scales partial sums.

    y[m, n] = act(acc + bias_n) + residual[m, n]        acc = fma(p_g, s[g, m] t[n / 128, g], acc)

p_g = sum of a[m, k] b[n, k] over the 128 k of block g stays within tensor cores, which hold it in fewer bits
than float32; acc is float32, block after block. The two scales are multiplied first, once for a row of a
tile, and what is added is rounded once: one instruction for each sum and block. This is `promote128` of
`fp8_matmul` with a factor.
"""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from qcompiler.backends.triton.kernels.epilogue import finish
from qcompiler.backends.triton.kernels.quantize import FORMATS, codes_of, magnitude, scale_of
from qcompiler.backends.triton.kernels.quantize_both import tile, within
from qcompiler.backends.triton.kernels.tile import tile_of

SIDE = tl.constexpr(128)  # numbers of a row under one scale, and rows and columns of a weight


@triton.jit
def quantize_blocks(
    x,
    codes,
    scales,
    M,
    K,
    width,
    stride_x,
    stride_codes,
    LARGEST: tl.constexpr,
    MANTISSA: tl.constexpr,
    NORMAL: tl.constexpr,
    BM: tl.constexpr,
):
    """x [M, K]  -->  codes [M, width], zeros behind the K-th, and scales [ceil(K / 128), M].

    One program for BM rows of a block, which are read once; their scales lie side by side.
    """
    across = tl.cdiv(width, SIDE)
    block = tl.program_id(0) % across
    first_m, first_k = tl.program_id(0) // across * BM, block * SIDE
    m, k = first_m + tl.arange(0, BM), first_k + tl.arange(0, SIDE)
    values = tile(x, first_m, first_k, M, K, stride_x, BM, SIDE)
    scale = scale_of(tl.max(magnitude(values), axis=1), LARGEST)
    found = codes_of(values, scale[:, None], LARGEST, MANTISSA, NORMAL)
    here = (m < M)[:, None] & (k < width)[None, :]
    tl.store(within(codes, first_m, stride_codes, k, BM), found.to(codes.dtype.element_ty), mask=here)
    tl.store(scales + block.to(tl.int64) * M + m, scale, mask=m < M)


@triton.jit
def fp8_block_matmul(
    a,
    b,
    out,
    a_scale,
    b_scale,
    bias,
    residual,
    scale,
    amax,
    M,
    N,
    K,
    stride_a,
    stride_b,
    stride_out,
    stride_residual,
    ACTIVATION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """a and b e4m3 [M, K] and [N, K], K a multiple of 16; a_scale [ceil(K / 128), M], b_scale
    [ceil(N / 128), ceil(K / 128)]. One program for each tile, whose columns share their scales. Results go on
    as floats alone: scale and amax are None.
    """
    tl.static_assert(scale is None)
    tl.static_assert(amax is None)
    tl.static_assert(BK == SIDE)
    tl.static_assert(SIDE % BN == 0)
    row, column = tile_of(M, N, BM, BN, GROUP)
    tiles_a = tl.make_tensor_descriptor(a, shape=[M, K], strides=[stride_a, 1], block_shape=[BM, BK])
    tiles_b = tl.make_tensor_descriptor(b, shape=[N, K], strides=[stride_b, 1], block_shape=[BN, BK])
    m = row * BM + tl.arange(0, BM)
    blocks = tl.cdiv(K, BK)
    from_s = a_scale + m
    from_t = b_scale + column * BN // SIDE * blocks
    acc = tl.zeros((BM, BN), tl.float32)
    for block in range(0, blocks):
        s = tl.load(from_s, mask=m < M, other=0.0)
        t = tl.load(from_t)
        x = tiles_a.load([row * BM, block * BK])
        y = tiles_b.load([column * BN, block * BK])
        p = tl.dot(x, y.T, out_dtype=tl.float32)
        acc = tl.fma(p, tl.broadcast_to((s * t)[:, None], (BM, BN)), acc)
        from_s += M
        from_t += 1
    finish(acc, None, out, bias, residual, M, N, stride_out, stride_residual, row, column, BM, BN, ACTIVATION)


def launch(x: Tensor, codes: Tensor, scales: Tensor, rows: int, options: Mapping[str, int]) -> None:
    """Fill codes [M, width] and scales [ceil(K / 128), M] from x [M, K]; rows: of a program."""
    (M, K), width = x.shape, codes.shape[1]
    quantize_blocks[(triton.cdiv(M, rows) * scales.shape[0],)](
        x, codes, scales, M, K, width, x.stride(0), codes.stride(0),
        **FORMATS["e4m3"], BM=rows, enable_fp_fusion=False, **options,
    )  # fmt: skip
