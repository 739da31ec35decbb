"""Products of FP8 numbers with scales, bias, activation and residual on the way out.

    y[m, n] = act((sum_k a[m, k] b[n, k]) s_m t_n + bias_n) + residual[m, n]

Tensor cores hold sums of FP8 products in fewer bits than float32 has. There are two ways to live with it:

    fast        acc = all of K within the tensor cores
    promote128  acc = ((p_0 + p_1) + p_2) + ...     p_i of 128 k within them, added in float32

Where K is in parts, each part is summed in one of these ways, and parts are added in float32: `fast` then
holds less in few bits.
"""

import triton
import triton.language as tl

from qcompiler.backends.triton.kernels.product import product

ACCUMULATION = {"fast": None, "promote128": 128}
"""After how many k partial sums are added in float32, by name; None lets Triton choose, which is never."""


@triton.jit
def fp8_matmul(
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
    PROMOTE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    partial=None,
    SPLIT: tl.constexpr = 1,
    PERSISTENT: tl.constexpr = 0,
):
    """a and b e4m3 [M, K] and [N, K], K a multiple of 16; `product` has the programs."""
    product(
        a, b, out, a_scale, b_scale, bias, residual, scale, amax, partial, M, N, K, stride_a, stride_b,
        stride_out, stride_residual, ACTIVATION, False, PROMOTE, BM, BN, BK, GROUP, DESCRIPTORS, SPLIT,
        PERSISTENT,
    )  # fmt: skip
