"""Products of either kind of codes, and `torch.ops.qcompiler.triton_accumulate`, which adds to what is there.

out[m, n] += (sum_k a[m, k] b[n, k]) s_m t_n
"""

import torch
from torch import Tensor

from qcompiler.backends.triton.ops.alignment import is_even
from qcompiler.backends.triton.ops.linear import (
    checked,
    fp8_linear,
    int8_linear,
    kernel_for,
    kind_of,
    launched,
)

DEEP = 2**17  # terms that int32 can sum, a multiple of every tile; 133,144 are the most


Rows = tuple[Tensor, Tensor]
"""Codes and their scales."""


def product(
    left: Rows,
    right: Rows,
    accumulation: str,
    dtype: torch.dtype,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`int8_linear` or `fp8_linear` by the type of codes; accumulation: of FP8.

    Of int8, sums over more than 2^17 are made in parts, which are added in float32 one by one.
    """
    (a, s), (b, t) = left, right
    if a.dtype != torch.int8:
        y: Tensor = fp8_linear(a, s, b, t, bias, residual, "none", accumulation, dtype)
        return y
    *parts, last = zip(torch.split(a, DEEP, 1), torch.split(b, DEEP, 1), strict=True)
    for p, q in parts:
        residual = int8_linear(p, s, q, t, bias, residual, "none", torch.float32)
        bias = None
    y = int8_linear(last[0], s, last[1], t, bias, residual, "none", dtype)
    return y


@torch.library.custom_op("qcompiler::triton_accumulate", mutates_args=("out",), device_types="cpu")
def accumulate(
    out: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, accumulation: str
) -> None:
    """out [M, N], of any type, is read in float32, added to, and rounded to its type once."""
    out.copy_(product((a, a_scale), (b, b_scale), accumulation, out.dtype, residual=out))


@accumulate.register_fake
def _(out: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, accumulation: str) -> None:
    return None


@accumulate.register_kernel("cuda")
def on_cuda(out: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, accumulation: str) -> None:
    if (a.dtype == torch.int8 and a.shape[1] > DEEP) or not is_even(out):
        out.copy_(product((a, a_scale), (b, b_scale), accumulation, out.dtype, residual=out))
        return
    checked(a, b, a_scale, b_scale, None, out, "none", kind_of(a))
    kernel, mode = kernel_for(a, accumulation)
    launched(kernel, mode, a, a_scale, b, b_scale, None, out, "none", out)
