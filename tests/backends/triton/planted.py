"""What the checks of machine code must catch: operands in the wrong order, divisions that are none."""

import triton
import triton.language as tl


@triton.jit
def any_order(
    a,
    b,
    out,
    M,
    N,
    K,
    stride_a,
    stride_b,
    stride_out,
    ALONG_N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """ALONG_N: b is [K, N] and not [N, K]."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    from_a = a + m[:, None] * stride_a + k[None, :]
    from_b = b + (k[:, None] * stride_b + n[None, :] if ALONG_N else n[None, :] * stride_b + k[:, None])
    acc = tl.zeros((BM, BN), tl.int32)
    for _ in range(0, K, BK):
        acc = tl.dot(tl.load(from_a), tl.load(from_b), acc, out_dtype=tl.int32)
        from_a += BK
        from_b += BK * stride_b if ALONG_N else BK
    tl.store(out + m[:, None] * stride_out + n[None, :], acc)


@triton.jit
def divided(x, y, out, BLOCK: tl.constexpr, EXACT: tl.constexpr):
    at = tl.arange(0, BLOCK)
    left, right = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, tl.div_rn(left, right) if EXACT else left / right)
