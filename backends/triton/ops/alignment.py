"""How tensors lie where kernels read them: what the compiler was told holds at every launch.

Triton makes other code of a pointer that is no multiple of 16 bytes, and of a stride that is none of 16: it
loads number by number, and no check of machine code has seen it. Hence a rule for all ops:

    floats, scales, biases, lengths    `even`: copied where they lie otherwise, once for a launch
    codes, weights, caches             refused where they lie otherwise: a copy would cost what reading costs
"""

from typing import TypeVar

import torch
from torch import Tensor

MULTIPLE = 16  # bytes of a load and of what the copy engine takes; and what strides are compared with

T = TypeVar("T", Tensor, Tensor | None)


def even(x: T) -> T:
    """x, or the same numbers in memory of their own."""
    return x if x is None or is_even(x) else x.clone(memory_format=torch.contiguous_format)


def is_even(x: Tensor) -> bool:
    """Whether x begins at a whole load, and its strides are multiples of 16 where a copy's would be."""
    own = 1
    for size, stride in zip(reversed(x.shape[1:]), reversed(x.stride()[:-1]), strict=True):
        own *= size
        if own % MULTIPLE == 0 and stride % MULTIPLE:
            return False
    return begins_evenly(x)


def begins_evenly(x: Tensor) -> bool:
    return x.data_ptr() % MULTIPLE == 0


def lies_askew(codes: Tensor) -> bool:
    """Whether rows have gaps within them, or begin elsewhere than at whole loads; one row has no pitch."""
    is_apart = codes.stride(1) != 1 or (len(codes) > 1 and codes.stride(0) % MULTIPLE != 0)
    return is_apart or not begins_evenly(codes)
