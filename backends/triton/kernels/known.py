"""Floats to codes of 8 bits by scales that are known before: one pass over rows of any length.

    q, s as in `quantize_rows`, of amax_m = max |x| of a row, which whoever made the row knows
    q = sat(rne(x / s))         by one scale of all rows, from calibration

By one scale what lies beyond the codes saturates, of int8 at -128 and 127. NaN stays NaN where the format
has one, and is -128 of int8: the codes are those of `qcompiler::quantize`. The first way needs a second look
at nothing, so a program takes a part of a row and none waits for another.
"""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from qcompiler.backends.triton.kernels.quantize import FORMATS, codes_of, on_grid, part, scale_of


@triton.jit
def saturated(x, scale, LARGEST: tl.constexpr, MANTISSA: tl.constexpr, NORMAL: tl.constexpr):
    """sat(rne(x / s)), still float32, with one more code below zero where they are integers."""
    ratio = tl.div_rn(x, scale)
    is_number = tl.abs(ratio) >= 0.0  # NaN alone is not: a minimum passes over it
    if MANTISSA == 0:
        within = tl.minimum(tl.maximum(ratio, -LARGEST - 1.0), LARGEST)
        within = tl.where(is_number, within, -LARGEST - 1.0)
    else:
        within = tl.minimum(tl.maximum(ratio, -LARGEST), LARGEST)
        within = tl.where(is_number, within, ratio)
    return on_grid(within, MANTISSA, NORMAL)


@triton.jit
def quantize_known(
    x,
    amax,
    scale,
    codes,
    scales,
    columns,
    width,
    stride_x,
    stride_codes,
    LARGEST: tl.constexpr,
    MANTISSA: tl.constexpr,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x [rows, columns]  -->  codes [rows, width], zeros behind the columns.

    Either amax [rows] is given, and scales [rows] are stored, or scale [1]; the others are None. One program
    for each BLOCK codes of a row.
    """
    row, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    at = tl.arange(0, BLOCK)
    values = part(x + row * stride_x, start, columns, BLOCK)
    if amax is not None:
        of_row = scale_of(tl.load(amax + row), LARGEST)
        found = codes_of(values, of_row, LARGEST, MANTISSA, NORMAL)
        tl.store(scales + row, of_row, mask=start == 0)
    else:
        found = saturated(values, tl.load(scale), LARGEST, MANTISSA, NORMAL)
    line = codes + row * stride_codes + start
    tl.store(line + at, found.to(codes.dtype.element_ty), mask=at < width - start)


def launch(
    x: Tensor,
    amax: Tensor | None,
    scale: Tensor | None,
    codes: Tensor,
    scales: Tensor | None,
    format: str,
    block: int,
    options: Mapping[str, int],
) -> None:
    """Fill codes [rows, width], and from amax [rows] scales [rows], of contiguous rows of x."""
    quantize_known[(x.shape[0], triton.cdiv(codes.shape[1], block))](
        x, amax, scale, codes, scales, x.shape[1], codes.shape[1], x.stride(0), codes.stride(0),
        **FORMATS[format], BLOCK=block, enable_fp_fusion=False, **options,
    )  # fmt: skip
