"""What happens to sums on their way out, in float32 and with one cast at the end.

y = act(acc s_m t_n + bias_n) + residual_mn
"""

import triton
import triton.language as tl

ROOT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit
def activated(y, ACTIVATION: tl.constexpr):
    """GELU is the one with erf; an unknown name does not compile."""
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * ROOT_HALF))
    elif ACTIVATION == "silu":
        y = y / (1.0 + tl.exp(-y))
    else:
        tl.static_assert(ACTIVATION == "none")
    return y


@triton.jit
def store(
    acc,
    out,
    a_scale,
    b_scale,
    bias,
    residual,
    M,
    N,
    stride_out,
    stride_residual,
    row,
    column,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Scales [M] and [N], bias [N] or None, residual [M, N] or None, out [M, N]."""
    m = row * BM + tl.arange(0, BM)
    n = column * BN + tl.arange(0, BN)
    left = tl.load(a_scale + m, mask=m < M, other=0.0)
    right = tl.load(b_scale + n, mask=n < N, other=0.0)
    y = acc.to(tl.float32) * left[:, None] * right[None, :]
    finish(y, None, out, bias, residual, M, N, stride_out, stride_residual, row, column, BM, BN, ACTIVATION)


@triton.jit
def finish(
    y,
    beside,
    out,
    bias,
    residual,
    M,
    N,
    stride_out,
    stride_residual,
    row,
    column,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """out = act(y + bias) + residual, with a second sum act(y + bias_n) (beside + bias_(N + n)) + residual.

    y and beside [BM, BN], beside or None; bias [N], of two sums [2 N], or None; residual [M, N] or None.
    """
    m = row * BM + tl.arange(0, BM)
    n = column * BN + tl.arange(0, BN)
    here = (m < M)[:, None] & (n < N)[None, :]
    within = tl.arange(0, BM)[:, None]
    first = (row * BM).to(tl.int64)
    if bias is not None:
        y += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    y = activated(y, ACTIVATION)
    if beside is not None:
        if bias is not None:
            beside += tl.load(bias + N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        y *= beside
    if residual is not None:
        added = residual + first * stride_residual + within * stride_residual + n[None, :]
        y += tl.load(added, mask=here, other=0.0).to(tl.float32)
    tl.store(
        out + first * stride_out + within * stride_out + n[None, :], y.to(out.dtype.element_ty), mask=here
    )
