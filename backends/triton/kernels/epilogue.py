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
    here = (m < M)[:, None] & (n < N)[None, :]
    within = tl.arange(0, BM)[:, None]
    first = (row * BM).to(tl.int64)
    left = tl.load(a_scale + m, mask=m < M, other=0.0)
    right = tl.load(b_scale + n, mask=n < N, other=0.0)
    y = acc.to(tl.float32) * left[:, None] * right[None, :]
    if bias is not None:
        y += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    y = activated(y, ACTIVATION)
    if residual is not None:
        beside = residual + first * stride_residual + within * stride_residual + n[None, :]
        y += tl.load(beside, mask=here, other=0.0).to(tl.float32)
    tl.store(
        out + first * stride_out + within * stride_out + n[None, :], y.to(out.dtype.element_ty), mask=here
    )
