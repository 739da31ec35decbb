"""What happens to sums on their way out, in float32 and with one cast at the end.

    y = act(acc s_m t_n + bias_n) + residual_mn

and for whoever reads y in codes, either of

    q = sat(rne(y / s))         instead of y, by one scale that is known before
    a_m = max_n |y_mn|          beside y, of what y is after its cast
"""

import triton
import triton.language as tl

from qcompiler.backends.triton.kernels.known import saturated
from qcompiler.backends.triton.kernels.quantize import FORMATS, magnitude

LARGEST_INT8 = tl.constexpr(FORMATS["int8"]["LARGEST"])
LARGEST_E4M3 = tl.constexpr(FORMATS["e4m3"]["LARGEST"])
MANTISSA_E4M3 = tl.constexpr(FORMATS["e4m3"]["MANTISSA"])
NORMAL_E4M3 = tl.constexpr(FORMATS["e4m3"]["NORMAL"])
ROOT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit
def activated(y, ACTIVATION: tl.constexpr):
    """GELU is the one with erf; an unknown name does not compile."""
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * ROOT_HALF))
    elif ACTIVATION == "silu":
        y = y / (1.0 + tl.exp(-y))
    elif ACTIVATION == "relu":
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
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
    scale,
    amax,
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
    """Scales [M], or None where rows have none, and [N], bias [N] or None, residual [M, N] or None.

    out [M, N]. By a scale [1], or else None, it gets codes, [M, N rounded up to 16], with zeros behind the
    N-th. amax: the bits of maxima [M], int32, which begin as zeros, or None; bits of numbers that are not
    negative have the order of the numbers, whatever the order of programs.
    """
    m = row * BM + tl.arange(0, BM)
    n = column * BN + tl.arange(0, BN)
    right = tl.load(b_scale + n, mask=n < N, other=0.0)
    y = acc.to(tl.float32)
    if a_scale is not None:
        left = tl.load(a_scale + m, mask=m < M, other=0.0)
        y *= left[:, None]
    y *= right[None, :]
    y = completed(y, None, bias, residual, M, N, stride_residual, row, column, BM, BN, ACTIVATION)
    width = N
    if scale is not None:
        width = tl.cdiv(N, 16) * 16
        if out.dtype.element_ty == tl.int8:
            y = saturated(y, tl.load(scale), LARGEST_INT8, 0.0, 0.0)
        else:
            tl.static_assert(out.dtype.element_ty == tl.float8e4nv)
            y = saturated(y, tl.load(scale), LARGEST_E4M3, MANTISSA_E4M3, NORMAL_E4M3)
        y = tl.where((n < N)[None, :], y, 0.0)
    if amax is not None:
        size = magnitude(y.to(out.dtype.element_ty).to(tl.float32))
        largest = tl.max(tl.where((n < N)[None, :], size, 0.0), axis=1)
        tl.atomic_max(amax + m, largest.to(tl.int32, bitcast=True), mask=m < M, sem="relaxed")
    put(y, out, M, width, stride_out, row, column, BM, BN)


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
    """What `completed` makes of sums, into out [M, N]."""
    y = completed(y, beside, bias, residual, M, N, stride_residual, row, column, BM, BN, ACTIVATION)
    put(y, out, M, N, stride_out, row, column, BM, BN)


@triton.jit
def completed(
    y,
    beside,
    bias,
    residual,
    M,
    N,
    stride_residual,
    row,
    column,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """act(y + bias) + residual, with a second sum act(y + bias_n) (beside + bias_(N + n)) + residual.

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
    return y


@triton.jit
def put(y, out, M, width, stride_out, row, column, BM: tl.constexpr, BN: tl.constexpr):
    """A tile of out [M, width], cast to its type."""
    m = row * BM + tl.arange(0, BM)
    n = column * BN + tl.arange(0, BN)
    line = out + (row * BM).to(tl.int64) * stride_out + tl.arange(0, BM)[:, None] * stride_out
    here = (m < M)[:, None] & (n < width)[None, :]
    tl.store(line + n[None, :], y.to(out.dtype.element_ty), mask=here)
