"""One tile of A Bᵀ, where both operands lie contiguous along what is summed over (`nt8`).

    A [M, K], B [N, K]  -->  sums over k of A[m, k] B[n, k] for a tile of BM x BN

Tensor cores take operands of 8 bits in no other order: a [K, N] weight would be transposed in registers.
"""

import triton
import triton.language as tl


@triton.jit
def tile_of(M, N, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of this program's tile."""
    return place_of(tl.program_id(0), M, N, BM, BN, GROUP)


@triton.jit
def place_of(index, M, N, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of a tile by its number: down GROUP rows before the next column, for the sake of L2."""
    down = tl.cdiv(M, BM)
    across = GROUP * tl.cdiv(N, BN)
    first = index // across * GROUP
    height = tl.minimum(down - first, GROUP)
    return first + index % across % height, index % across // height


@triton.jit
def rows_of(x, tile, rows, stride, SIZE: tl.constexpr):
    """Pointers [SIZE] to the rows of a tile; past the end the last row again, whose sums nobody stores.

    The tile's own place takes 64 bits, what is within it 32.
    """
    first = tile * SIZE
    within = tl.minimum(tl.arange(0, SIZE), rows - 1 - first)
    return x + first.to(tl.int64) * stride + within * stride


@triton.jit
def operand(x, rows, K, stride, SIZE: tl.constexpr, BK: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """What `sums` loads tiles [SIZE, BK] of x [rows, K] from: for the copy engine a descriptor, or else x."""
    if DESCRIPTORS:
        found = tl.make_tensor_descriptor(x, shape=[rows, K], strides=[stride, 1], block_shape=[SIZE, BK])
    else:
        found = x
    return found


@triton.jit
def sums(
    a,
    b,
    M,
    N,
    start,
    end,
    stride_a,
    stride_b,
    row,
    column,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EXACT: tl.constexpr,
    PROMOTE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """[BM, BN], over k from start to end: int32 where EXACT, else float32, which tensor cores may hold in
    fewer bits.

    a, b: as `operand` makes them. end: that of K, or whole steps BK from start. PROMOTE: after how many k
    such a sum is added to a true float32, or None for never. DESCRIPTORS: whether the copy engine (TMA)
    fetches operands, in tiles, or threads do, by pointers.
    """
    kind: tl.constexpr = tl.int32 if EXACT else tl.float32
    acc = tl.zeros((BM, BN), kind)
    if DESCRIPTORS:
        for k in range(start, end, BK):
            x = a.load([row * BM, k])
            y = b.load([column * BN, k])
            acc = tl.dot(x, y.T, acc, max_num_imprecise_acc=PROMOTE, out_dtype=kind)
    else:
        along = tl.arange(0, BK)
        from_a = rows_of(a, row, M, stride_a, BM)[:, None] + (along + start)[None, :]
        from_b = rows_of(b, column, N, stride_b, BN)[None, :] + (along + start)[:, None]
        for k in range(start, end, BK):
            here = along < end - k
            x = tl.load(from_a, mask=here[None, :], other=0.0)
            y = tl.load(from_b, mask=here[:, None], other=0.0)
            acc = tl.dot(x, y, acc, max_num_imprecise_acc=PROMOTE, out_dtype=kind)
            from_a += BK
            from_b += BK
    return acc
