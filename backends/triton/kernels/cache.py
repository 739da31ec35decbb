"""The new token's keys and values become codes of a cache, each head's row with a scale of its own."""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from qcompiler.backends.triton.kernels.quantize import FORMATS, codes_of, magnitude, scale_of


@triton.jit
def append_kv(
    k,
    v,
    k_codes,
    k_scales,
    v_codes,
    v_scales,
    positions,
    rows,
    heads,
    size,
    D: tl.constexpr,
    BD: tl.constexpr,
    LARGEST: tl.constexpr,
    MANTISSA: tl.constexpr,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """k, v [rows, D]  -->  place positions[row // heads] of codes [rows, size, D] and scales [rows, size].

    BLOCK rows of k, or of v, for each program; a place that the cache does not have is not written.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(positions + row // heads, mask=row < rows, other=-1).to(tl.int64)
    here = (row < rows) & (place >= 0) & (place < size)
    at = row.to(tl.int64) * size + place
    if tl.program_id(1) == 0:
        stored(k, k_codes, k_scales, row, at, here, D, BD, LARGEST, MANTISSA, NORMAL)
    else:
        stored(v, v_codes, v_scales, row, at, here, D, BD, LARGEST, MANTISSA, NORMAL)


@triton.jit
def stored(
    x,
    codes,
    scales,
    row,
    at,
    here,
    D: tl.constexpr,
    BD: tl.constexpr,
    LARGEST: tl.constexpr,
    MANTISSA: tl.constexpr,
    NORMAL: tl.constexpr,
):
    """Rows of x become rows `at` of codes and scales, where they are to be stored at all."""
    d = tl.arange(0, BD)
    both = here[:, None] if BD == D else here[:, None] & (d < D)[None, :]
    from_x = x + row.to(tl.int64)[:, None] * D + d[None, :]
    values = tl.load(from_x, mask=both, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(magnitude(values), axis=1), LARGEST)
    found = codes_of(values, scale[:, None], LARGEST, MANTISSA, NORMAL)
    tl.store(codes + at[:, None] * D + d[None, :], found.to(codes.dtype.element_ty), mask=both)
    tl.store(scales + at, scale, mask=here)


def launch(
    k_codes: Tensor, k_scales: Tensor, v_codes: Tensor, v_scales: Tensor, k: Tensor, v: Tensor,
    positions: Tensor, format: str, block: int, options: Mapping[str, int],
) -> None:  # fmt: skip
    """k, v [B, heads, D]  -->  codes [B, heads, size, D] and scales [B, heads, size]; all contiguous."""
    B, heads, size, D = k_codes.shape
    append_kv[(triton.cdiv(B * heads, block), 2)](
        k, v, k_codes, k_scales, v_codes, v_scales, positions, B * heads, heads, size, D=D,
        BD=triton.next_power_of_2(D), **FORMATS[format], BLOCK=block, enable_fp_fusion=False, **options,
    )  # fmt: skip
