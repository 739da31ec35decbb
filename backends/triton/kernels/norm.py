"""A residual added, rows normalised, and codes of 8 bits made of them, in one pass.

    h = x + r                             in the type of x, which goes on as the residual stream
    RMS      y = h p w                    p = 1 / sqrt(sum h^2 / n + eps)
    layer    y = (h - m) p w + b          m = sum h / n,  p = 1 / sqrt(sum (h - m)^2 / n + eps)
    q, s     as in `quantize_rows`, of y in float32; or by a scale that is given

All is float32 in the order written, each operation rounded by itself. A sum adds neighbours, then neighbours
of what that gave, and so on: ((v0 + v1) + (v2 + v3)) + .... That is no order of threads, and zeros behind the
last number change nothing. The bits are therefore those of the reference, however rows are laid out.
"""

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from qcompiler.backends.triton.kernels.quantize import FORMATS, HUGE, magnitude, part, put, scale_of


@triton.jit
def total(values, BLOCK: tl.constexpr, LEVELS: tl.constexpr):
    """The sum of BLOCK = 2^LEVELS numbers, neighbours first; of two numbers there is one sum."""
    for level in tl.static_range(1, LEVELS):
        values = tl.sum(tl.reshape(values, (BLOCK >> level, 2)), axis=1)
    return tl.sum(values, axis=0) + 0.0  # -0 only if all are, and there is no zero behind the last: 0


@triton.jit
def norm_quantize(
    x,
    residual,
    weight,
    bias,
    given,
    codes,
    scales,
    stream,
    floats,
    columns,
    width,
    stride_x,
    stride_residual,
    stride_codes,
    stride_stream,
    stride_floats,
    eps,
    CENTRED: tl.constexpr,
    LARGEST: tl.constexpr,
    MANTISSA: tl.constexpr,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """x [rows, columns]  -->  codes [rows, width], scales [rows], and where they are wanted h and y.

    residual, stream and floats [rows, columns], bias [columns] and given [1], a scale, may be None, and the
    stream is where the residual is. CENTRED: whether a mean is taken away. One program for each row, which it
    holds: columns <= width <= BLOCK = 2^LEVELS.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    here = at < columns
    values = part(x + row * stride_x, 0, columns, BLOCK)
    if residual is not None:
        values += part(residual + row * stride_residual, 0, columns, BLOCK)
        kept = values.to(stream.dtype.element_ty)
        tl.store(stream + row * stride_stream + at, kept, mask=here)
        values = kept.to(tl.float32)
    count = columns * 1.0  # a length of 1 is no tensor, and has no type to be cast
    if CENTRED:
        values = tl.where(here, values - tl.div_rn(total(values, BLOCK, LEVELS), count), 0.0)
    variance = tl.div_rn(total(values * values, BLOCK, LEVELS), count)
    values = values * tl.div_rn(1.0, tl.sqrt_rn(variance + eps)) * part(weight, 0, columns, BLOCK)
    if bias is not None:
        values += part(bias, 0, columns, BLOCK)
    if floats is not None:
        tl.store(floats + row * stride_floats + at, values.to(floats.dtype.element_ty), mask=here)
    amax = tl.max(magnitude(values), axis=0)
    scale = scale_of(amax, LARGEST)
    if given is not None:
        scale = tl.where(amax <= HUGE, tl.load(given), float("nan"))
    put(codes + row * stride_codes, 0, width, values, scale, LARGEST, MANTISSA, NORMAL, BLOCK)
    tl.store(scales + row, scale)


def launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    given: Tensor | None,
    codes: Tensor,
    scales: Tensor,
    stream: Tensor | None,
    floats: Tensor | None,
    eps: float,
    centred: bool,
    format: str,
    constants: Mapping[str, Any],
    options: Mapping[str, int],
) -> None:
    """Fill codes [rows, width], scales [rows], stream and floats [rows, columns] from rows of x."""

    def pitch(matrix: Tensor | None) -> int:
        return 0 if matrix is None else matrix.stride(0)

    norm_quantize[(x.shape[0],)](
        x, residual, weight, bias, given, codes, scales, stream, floats, x.shape[1], codes.shape[1],
        pitch(x), pitch(residual), pitch(codes), pitch(stream), pitch(floats), eps,
        CENTRED=centred, **FORMATS[format], **constants, enable_fp_fusion=False, **options,
    )  # fmt: skip
