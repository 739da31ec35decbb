"""Products of int8 codes, exact, with scales, bias, activation and residual on the way out.

y[m, n] = act(float32(sum_k a[m, k] b[n, k]) s_m t_n + bias_n) + residual[m, n]
"""

import triton
import triton.language as tl

from qcompiler.backends.triton.kernels.product import product


@triton.jit
def int8_matmul(
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
    DESCRIPTORS: tl.constexpr,
    partial=None,
    SPLIT: tl.constexpr = 1,
    PERSISTENT: tl.constexpr = 0,
):
    """a int8 [M, K], b int8 [N, K], K a multiple of 16 and at most 133,144; `product` has the programs."""
    product(
        a, b, out, a_scale, b_scale, bias, residual, scale, amax, partial, M, N, K, stride_a, stride_b,
        stride_out, stride_residual, ACTIVATION, True, None, BM, BN, BK, GROUP, DESCRIPTORS, SPLIT,
        PERSISTENT,
    )  # fmt: skip
