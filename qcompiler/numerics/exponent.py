"""Exact powers of two: exponents are read from the float's own exponent field, never from a logarithm."""

import torch
from torch import Tensor

LOWEST = -(2**20)  # floor_log2 of zero: below every exponent, and far from overflowing int32


def floor_log2(x: Tensor) -> Tensor:
    """The largest integer k with 2^k <= |x| (int32); `LOWEST` where x = 0.

    x = m * 2^e, 1/2 <= |m| < 1  -->  e - 1        (frexp)
    """
    return (torch.frexp(x).exponent - 1).masked_fill(x == 0, LOWEST)


def ceil_log2(x: Tensor) -> Tensor:
    """The smallest integer k with |x| <= 2^k (int32); `LOWEST` where x = 0.

    x = m * 2^e, 1/2 <= |m| < 1  -->  e - 1 if |m| = 1/2 else e
    """
    mantissa, exponent = torch.frexp(x)
    return (exponent - (mantissa.abs() == 0.5).to(exponent.dtype)).masked_fill(x == 0, LOWEST)


def exp2(k: Tensor) -> Tensor:
    """2^k as float32, built from its bits, for integers -126 <= k <= 127; inf for k = 128."""
    return ((k.to(torch.int32) + 127) << 23).view(torch.float32)
