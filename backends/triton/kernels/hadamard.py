"""Blocks of rows turned by the Hadamard transform, and codes of 8 bits made of them, in one pass.

    y = x BlockDiag(H, ..., H)        H_k = (H_(k-1)  H_(k-1) ; H_(k-1)  -H_(k-1)) / sqrt(2)
    q, s     as in `quantize_rows`, of y in float32

In k steps: at each, numbers whose places differ in one bit, the lowest first, become their sum and their
difference. Each is one operation of float32, so that the bits do not depend on how rows are laid out. In the
end one product by 2^(-k/2), which is exact for every other k.
"""

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from qcompiler.backends.triton.kernels.quantize import FORMATS, magnitude, part, put, scale_of


@triton.jit
def turned(values, BLOCK: tl.constexpr, LEVELS: tl.constexpr):
    """Blocks of 2^LEVELS numbers among BLOCK, without the last product.

    A number finds its partner by what both have together, less itself, in bits: a sum over the two, which
    takes one exchange between threads, and none where a thread has both.
    """
    for level in tl.static_range(LEVELS):
        pairs = tl.reshape(values, (BLOCK >> (level + 1), 2, 1 << level))
        bits = pairs.to(tl.int32, bitcast=True)
        other = (tl.xor_sum(bits, axis=1)[:, None, :] ^ bits).to(tl.float32, bitcast=True)
        is_second = (tl.arange(0, 2) == 1)[None, :, None]
        values = tl.reshape(tl.where(is_second, other - pairs, pairs + other), (BLOCK,))
    return values


@triton.jit
def hadamard_quantize(
    x,
    codes,
    scales,
    columns,
    width,
    stride_x,
    stride_codes,
    factor,
    LARGEST: tl.constexpr,
    MANTISSA: tl.constexpr,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """x [rows, columns]  -->  codes [rows, width] and scales [rows] of blocks of 2^LEVELS.

    factor: 2^(-LEVELS / 2). One program for each row, which it holds: columns <= width <= BLOCK.
    """
    row = tl.program_id(0).to(tl.int64)
    values = turned(part(x + row * stride_x, 0, columns, BLOCK), BLOCK, LEVELS) * factor
    scale = scale_of(tl.max(magnitude(values), axis=0), LARGEST)
    put(codes + row * stride_codes, 0, width, values, scale, LARGEST, MANTISSA, NORMAL, BLOCK)
    tl.store(scales + row, scale)


def launch(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    levels: int,
    format: str,
    constants: Mapping[str, Any],
    options: Mapping[str, int],
) -> None:
    """Fill codes [rows, width] and scales [rows] from x [rows, columns], in blocks of 2^levels."""
    hadamard_quantize[(x.shape[0],)](
        x, codes, scales, x.shape[1], codes.shape[1], x.stride(0), codes.stride(0), 2 ** (-levels / 2),
        LEVELS=levels, **FORMATS[format], **constants, enable_fp_fusion=False, **options,
    )  # fmt: skip
