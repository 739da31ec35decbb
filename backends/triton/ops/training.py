"""Linear layers that are trained in 8 bits, `torch.ops.qcompiler.triton_trained_linear`.

    Y  = X W^T + bias        sums over k        rows of X         rows of W
    dX = dY W                sums over n        rows of dY        columns of W
    dW = dY^T X              sums over m        columns of dY     columns of X

Operands are the codes of `quantize_both`. Gradients pass as though nothing had been rounded: no scale clips,
hence no mask is kept. From forward to backward go the codes of columns, a byte for each element of X.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.triton.ops.accumulate import Rows, accumulate, product
from qcompiler.backends.triton.ops.quantize import CODES, quantize_rows
from qcompiler.backends.triton.ops.quantize_both import Both, quantize_both
from qcompiler.errors import InputError

FORMATS = {CODES[format][0]: format for format in ("int8", "e4m3")}
"""The formats of operands, by how their codes are held."""


def low_bit_linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    format: str = "int8",
    forward: str = "fast",
    backward: str = "promote128",
    weight: Both | None = None,
    into: Tensor | None = None,
    key: Tensor | None = None,
    tensor: int = 0,
) -> Tensor:
    """x [..., K], w [N, K], bias [N]  -->  [..., N] of the type of x; format: "int8" or "e4m3".

    forward, backward: how FP8 products are summed, see `fp8_linear`. weight: `quantize_both(w)`, made once
    for all micro-batches of a step. into: what dW is added to in backward, [N, K]; w itself gets none then.
    key: (seed, step, rank); with one, codes of dY are drawn by the numbers of this tensor, without bias.
    """
    rows = x.reshape(-1, x.shape[-1])
    codes = quantize_both(rows.detach().contiguous(), format)
    weight = weight or quantize_both(w.detach().contiguous(), format)
    y: Tensor = trained_linear(rows, w, bias, codes, weight, forward, backward, into, key, tensor)
    return y.view(*x.shape[:-1], w.shape[0])


@torch.library.custom_op("qcompiler::triton_trained_linear", mutates_args=())
def trained_linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    x_codes: Sequence[Tensor],
    w_codes: Sequence[Tensor],
    forward: str,
    backward: str,
    into: Tensor | None,
    key: Tensor | None,
    tensor: int,
) -> Tensor:
    """x [M, K], w [N, K] and what `quantize_both` made of them  -->  [M, N] of the type of x.

    x and w are there to have gradients; their elements are not read.
    """
    for what, one, codes in (("x", x, x_codes), ("w", w, w_codes)):
        shapes = [[*tensor.shape] for tensor in codes]
        if len(codes) != 4 or codes[0].dtype not in FORMATS or shapes[1] + shapes[3] != [*one.shape]:
            raise InputError(
                f"codes of {what} {[*one.shape]} of {codes[0].dtype} with shapes {shapes}",
                why="codes and scales of its rows and of its columns are wanted",
                fix='use quantize_both with "int8" or "e4m3"',
            )
    (x_rows, x_scale, *_), (w_rows, w_scale, *_) = x_codes, w_codes
    return product((x_rows, x_scale), (w_rows, w_scale), forward, x.dtype, bias=bias)


@trained_linear.register_fake
def _(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    x_codes: Sequence[Tensor],
    w_codes: Sequence[Tensor],
    forward: str,
    backward: str,
    into: Tensor | None,
    key: Tensor | None,
    tensor: int,
) -> Tensor:
    return x.new_empty((x.shape[0], w.shape[0]))


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, bias, x_codes, w_codes, _, ctx.accumulation, ctx.into, key, ctx.tensor = inputs
    ctx.save_for_backward(*x_codes[2:], *w_codes[2:], key)
    # into is not saved, since saved tensors may not change: other micro-batches add to it too
    ctx.dtypes = [None if one is None else one.dtype for one in (x, w, bias)]


def gradients(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    """Of x, w and bias; of codes and options none."""
    needs_x, needs_w, needs_bias = ctx.needs_input_grad[:3]
    x_type, w_type, bias_type = ctx.dtypes
    x_codes, x_scale, w_codes, w_scale, key = ctx.saved_tensors
    x, w = (x_codes, x_scale), (w_codes, w_scale)
    format = FORMATS[x_codes.dtype]
    rows, columns = quantized(dy.contiguous(), format, key, ctx.tensor, needs_x, needs_w)
    dx = None if rows is None else product(rows, w, ctx.accumulation, x_type)
    dw = None
    if columns is not None and ctx.into is None:
        dw = product(columns, x, ctx.accumulation, w_type)
    elif columns is not None:
        accumulate(ctx.into, *columns, *x, ctx.accumulation)
    dbias = dy.float().sum(0).to(bias_type) if needs_bias else None
    return dx, dw, dbias, [None] * 4, [None] * 4, None, None, None, None, None


def quantized(
    dy: Tensor, format: str, key: Tensor | None, tensor: int, by_rows: bool, by_columns: bool
) -> tuple[Rows | None, Rows | None]:
    """Codes and scales of rows, and of columns; of an order that nobody needs none."""
    if key is None and not (by_rows and by_columns):
        rows = quantize_rows(dy, format) if by_rows else None
        return rows, quantize_rows(dy.t().contiguous(), format) if by_columns else None
    codes, scale, turned, turned_scale = quantize_both(dy, format, key, tensor)
    return (codes, scale) if by_rows else None, (turned, turned_scale) if by_columns else None


trained_linear.register_autograd(gradients, setup_context=setup_context)
