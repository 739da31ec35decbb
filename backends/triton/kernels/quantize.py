"""Rows of floats to codes of 8 bits, with one scale for each row.

    s = amax / L            amax = max |x| of the row        1 where amax = 0, NaN where it is not finite
    q = clamp(rne(x / s), -L, L)                             0 where s is NaN

L is 127 (int8), 448 (e4m3) or 57344 (e5m2). The codes are bit for bit those of the reference, since nothing
in here may be rounded in two ways: divisions are those of IEEE 754 (`div_rn`), products and sums are never
contracted (launch with `enable_fp_fusion=False`), and what is cast lies on the grid of its format already.
"""

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

TINY = tl.constexpr(2.0**-126)  # the smallest normal number: a scale below it would make x / s overflow
HUGE = tl.constexpr(3.4028234663852886e38)  # the largest finite one
MAGIC = tl.constexpr(12582912.0)  # 1.5 2^23: its neighbours are 1 apart, so that adding it rounds to integers
EXPONENT = tl.constexpr(0x7F800000)  # the bits of a float32 that say which power of two it starts from
SIGN = tl.constexpr(-(2**31))


@triton.jit
def magnitude(x):
    """|x|, infinite where x is not finite: a maximum alone would pass over NaN."""
    size = tl.abs(x)
    return tl.where(size <= HUGE, size, float("inf"))


@triton.jit
def scale_of(amax, LARGEST: tl.constexpr):
    scale = tl.maximum(tl.div_rn(amax, LARGEST), TINY)
    return tl.where(amax == 0.0, 1.0, tl.where(amax <= HUGE, scale, float("nan")))


@triton.jit
def ratio_of(x, scale, LARGEST: tl.constexpr):
    """x / s, at most LARGEST, and 0 where s is NaN."""
    ratio = tl.div_rn(x, scale)
    ratio = tl.where(scale <= HUGE, ratio, 0.0)
    return tl.minimum(tl.maximum(ratio, -LARGEST), LARGEST)


@triton.jit
def codes_of(x, scale, LARGEST: tl.constexpr, MANTISSA: tl.constexpr, NORMAL: tl.constexpr):
    """Numbers of the grid, still float32, at most LARGEST.

    MANTISSA: 0 for integers, else 2^-bits of a float format, whose normal numbers start from NORMAL.
    """
    return on_grid(ratio_of(x, scale, LARGEST), MANTISSA, NORMAL)


@triton.jit
def on_grid(ratio, MANTISSA: tl.constexpr, NORMAL: tl.constexpr):
    """The nearest number of the grid, of two the even one; of what lies within its largest, or is NaN."""
    if MANTISSA == 0:
        found = (ratio + MAGIC) - MAGIC
    else:
        bits = ratio.to(tl.int32, bitcast=True)
        power = (bits & EXPONENT).to(tl.float32, bitcast=True)
        magic = tl.maximum(power, NORMAL) * (MANTISSA * MAGIC)  # exact: a power of two times MAGIC
        rounded = (ratio + magic) - magic
        signed = rounded.to(tl.int32, bitcast=True) | (bits & SIGN)  # a difference of 0 has lost its sign
        found = signed.to(tl.float32, bitcast=True)
    return found


@triton.jit
def part(line, start, columns, BLOCK: tl.constexpr):
    """A block of a row in float32, zeros behind the last column."""
    at = tl.arange(0, BLOCK)
    return tl.load(line + start + at, mask=at < columns - start, other=0.0).to(tl.float32)


@triton.jit
def put(
    line, start, width, values, scale, LARGEST: tl.constexpr, MANTISSA: tl.constexpr, NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The codes of a block of a row, into a row of `width`."""
    at = tl.arange(0, BLOCK)
    found = codes_of(values, scale, LARGEST, MANTISSA, NORMAL).to(line.dtype.element_ty)
    tl.store(line + start + at, found, mask=at < width - start)


@triton.jit
def quantize_rows(
    x,
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
    """x [rows, columns]  -->  codes [rows, width], zeros behind the columns, and scales [rows].

    One program for each row, which is read once: columns <= width <= BLOCK.
    """
    row = tl.program_id(0).to(tl.int64)
    values = part(x + row * stride_x, 0, columns, BLOCK)
    scale = scale_of(tl.max(magnitude(values), axis=0), LARGEST)
    put(codes + row * stride_codes, 0, width, values, scale, LARGEST, MANTISSA, NORMAL, BLOCK)
    tl.store(scales + row, scale)


@triton.jit
def quantize_long_rows(
    x,
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
    """The same for rows of any length, which are read twice."""
    row = tl.program_id(0).to(tl.int64)
    line = x + row * stride_x
    amax = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        amax = tl.maximum(amax, magnitude(part(line, start, columns, BLOCK)))
    scale = scale_of(tl.max(amax, axis=0), LARGEST)
    for start in range(0, width, BLOCK):
        values = part(line, start, columns, BLOCK)
        put(codes + row * stride_codes, start, width, values, scale, LARGEST, MANTISSA, NORMAL, BLOCK)
    tl.store(scales + row, scale)


FORMATS: Mapping[str, Mapping[str, float]] = {
    "int8": {"LARGEST": 127.0, "MANTISSA": 0.0, "NORMAL": 0.0},
    "e4m3": {"LARGEST": 448.0, "MANTISSA": 2.0**-3, "NORMAL": 2.0**-6},
    "e5m2": {"LARGEST": 57344.0, "MANTISSA": 2.0**-2, "NORMAL": 2.0**-14},
}
"""What the kernels know of a format."""


def launch(
    x: Tensor, codes: Tensor, scales: Tensor, format: str, block: int, options: Mapping[str, int]
) -> None:
    """Fill codes [rows, width] and scales [rows] from x [rows, columns]; rows lie contiguous."""
    kernel = quantize_rows if codes.shape[1] <= block else quantize_long_rows
    kernel[(x.shape[0],)](
        x, codes, scales, x.shape[1], codes.shape[1], x.stride(0), codes.stride(0),
        **FORMATS[format], BLOCK=block, enable_fp_fusion=False, **options,
    )  # fmt: skip
