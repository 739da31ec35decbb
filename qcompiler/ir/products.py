"""Products of operands in few bits: `torch.ops.qcompiler.low_bit_mm`.

Both operands are brought into their formats on the way in; the result has the type of the left one. Integer
codes are summed in int32, and so exactly; the scales are applied once, in float32.
"""

import torch
from torch import Tensor

from qcompiler.ir.draws import draws
from qcompiler.numerics.operands import operand

DEEPEST = 2**31 // 127**2  # products that int32 can sum: 133,144


@torch.library.custom_op("qcompiler::low_bit_mm", mutates_args=())
def low_bit_mm(
    left: Tensor,
    right: Tensor,
    left_format: str,
    right_format: str,
    key: Tensor | None,
    tensor: int,
    purpose: int,
    left_scale: Tensor | None = None,
    right_scale: Tensor | None = None,
) -> Tensor:
    """[..., M, K] times [..., K, N], one scale for each row of the left and each column of the right operand.

    With a key the left operand, which is then a gradient, is rounded stochastically by the draws of
    (tensor, purpose). Given scales are those of whole operands, known before these were.
    """
    noise = None if key is None else draws(key, left.numel(), tensor, purpose)
    a = operand(left_format, left, (-1,), noise, left_scale)
    b = operand(right_format, right, (-2,), None, right_scale)
    return (multiplied(a.values, b.values) * (a.scale * b.scale)).to(left.dtype)


@low_bit_mm.register_fake
def _(
    left: Tensor,
    right: Tensor,
    left_format: str,
    right_format: str,
    key: Tensor | None,
    tensor: int,
    purpose: int,
    left_scale: Tensor | None = None,
    right_scale: Tensor | None = None,
) -> Tensor:
    return left.new_empty((*left.shape[:-1], right.shape[-1]))


def multiplied(left: Tensor, right: Tensor) -> Tensor:
    """The product of values in float32; of int8 codes it is exact before that one rounding."""
    return summed(left, right).float()


def summed(left: Tensor, right: Tensor) -> Tensor:
    """The product of values; of int8 codes it is exact, in int32 or, where they are too deep, in float64."""
    if left.dtype != torch.int8:
        return left @ right
    if left.dim() > 2 or left.shape[-1] > DEEPEST:  # sums below 2^53 are exact
        return left.double() @ right.double()
    return torch._int_mm(plain(left), plain(right))


def plain(x: Tensor) -> Tensor:
    """A matrix whose strides count rows and columns even where there is but one of them.

    The stride along a length of 1 is arbitrary, and on a CPU _int_mm takes it for the length of a row: where
    it is shorter than one, the result is never written (pytorch/pytorch#195066).
    """
    return x.clone(memory_format=torch.contiguous_format) if 1 in x.shape else x
