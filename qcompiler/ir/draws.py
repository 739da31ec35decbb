"""Draws as an operator, `torch.ops.qcompiler.draws`: a device may have a kernel of its own for them."""

import torch
from torch import Tensor

from qcompiler.numerics.philox import uniform


@torch.library.custom_op("qcompiler::draws", mutates_args=())
def draws(key: Tensor, count: int, tensor: int, purpose: int, offset: int = 0) -> Tensor:
    """`numerics.philox.uniform`."""
    return uniform(count, key, tensor=tensor, purpose=purpose, offset=offset)


@draws.register_fake
def _(key: Tensor, count: int, tensor: int, purpose: int, offset: int = 0) -> Tensor:
    return key.new_empty(count, dtype=torch.float32)
