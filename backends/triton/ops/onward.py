"""Linear layers whose result goes on to be read in codes of 8 bits.

`torch.ops.qcompiler.triton_linear_codes`    q = sat(rne(y / s)) by one scale, and no floats at all
`torch.ops.qcompiler.triton_linear_amax`     y, and max |y| of each row, for `triton_quantize_by_amax`

y is that of `triton_int8_linear` or `triton_fp8_linear`, by the type of the codes that are multiplied;
accumulation is of FP8.
"""

import torch
from torch import Tensor

from qcompiler.backends.triton.ops.known import FORMAT, saturated
from qcompiler.backends.triton.ops.linear import (
    check_beside,
    checked,
    fp8_linear,
    int8_linear,
    kernel_for,
    kind_of,
    launched,
)
from qcompiler.backends.triton.ops.quantize import padded


@torch.library.custom_op("qcompiler::triton_linear_codes", mutates_args=(), device_types="cpu")
def linear_codes(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    scale: Tensor,
    accumulation: str = "fast",
) -> Tensor:
    """[M, K] and [N, K], a scale float32 [1]  -->  codes [M, N rounded up to 16] of the type of a.

    They are those that `triton_quantize_by_scale` makes of y in float32: y is rounded to no type between.
    """
    check_scale(scale, a)
    y = product(a, a_scale, b, b_scale, bias, residual, activation, torch.float32, accumulation)
    return saturated(y, scale, FORMAT[a.dtype])


@linear_codes.register_fake
def _(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    scale: Tensor,
    accumulation: str = "fast",
) -> Tensor:
    return a.new_empty((a.shape[0], padded(b.shape[0])))


@linear_codes.register_kernel("cuda")
def codes_on_cuda(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    scale: Tensor,
    accumulation: str = "fast",
) -> Tensor:
    check_scale(scale, a)
    checked(a, b, a_scale, b_scale, bias, residual, activation, kind_of(a))
    kernel, mode = kernel_for(a, accumulation)
    out = a.new_empty((a.shape[0], padded(b.shape[0])))
    launched(kernel, mode, a, a_scale, b, b_scale, bias, residual, activation, out, scale=scale)
    return out


@torch.library.custom_op("qcompiler::triton_linear_amax", mutates_args=(), device_types="cpu")
def linear_amax(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    accumulation: str = "fast",
) -> tuple[Tensor, Tensor]:
    """[M, K] and [N, K]  -->  y [M, N] of a dtype, and max |y| of each row after that cast, float32 [M].

    It is infinite where a row of y is not finite.
    """
    y = product(a, a_scale, b, b_scale, bias, residual, activation, dtype, accumulation)
    largest = y.float().abs().amax(1)
    return y, largest.masked_fill(largest.isnan(), torch.inf)


@linear_amax.register_fake
def _(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    accumulation: str = "fast",
) -> tuple[Tensor, Tensor]:
    y = a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)
    return y, a.new_empty((a.shape[0],), dtype=torch.float32)


@linear_amax.register_kernel("cuda")
def amax_on_cuda(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    accumulation: str = "fast",
) -> tuple[Tensor, Tensor]:
    checked(a, b, a_scale, b_scale, bias, residual, activation, kind_of(a))
    kernel, mode = kernel_for(a, accumulation)
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)
    bits = torch.zeros(a.shape[0], dtype=torch.int32, device=a.device)
    launched(kernel, mode, a, a_scale, b, b_scale, bias, residual, activation, out, amax=bits)
    return out, bits.view(torch.float32)


def product(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    accumulation: str,
) -> Tensor:
    """`int8_linear` or `fp8_linear`."""
    given = (a, a_scale, b, b_scale, bias, residual, activation)
    if a.dtype == torch.int8:
        y: Tensor = int8_linear(*given, dtype)
        return y
    y = fp8_linear(*given, accumulation, dtype)
    return y


def check_scale(scale: Tensor, a: Tensor) -> None:
    check_beside("a scale", scale, (1,), a.device, (torch.float32,))
