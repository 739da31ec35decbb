"""The block Hadamard transform, which spreads an outlier over its block."""

from collections.abc import Callable

import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.numerics.learnedstep import mean_step, step_codes

DIRECT, RADIX = 128, 32  # the largest block that one matmul transforms, and what larger ones are made of
BLOCKS = tuple(2**k for k in range(11))


def hadamard(block: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None) -> Tensor:
    """H, [block, block]: entries +-1/sqrt(block), symmetric and orthogonal, so that H H = I.

    H_0 = [1]        H_k = (H_(k-1)  H_(k-1) ; H_(k-1)  -H_(k-1)) / sqrt(2)        block = 2^k
    """
    _check(block)
    signs = torch.ones(1, 1, dtype=dtype, device=device)
    while len(signs) < block:
        signs = torch.cat((torch.cat((signs, signs), 1), torch.cat((signs, -signs), 1)))
    return signs.div_(block**0.5)


def transform(x: Tensor, block: int) -> Tensor:
    """x BlockDiag(H, ..., H) over the last axis; its own inverse, and (X H)(W H)^T = X W^T.

    (..., n) --> (..., n)        block divides n; same type, computed in float32 or wider

    Large blocks factor, H_(a + b) = H_a (x) H_b: one small matmul along each axis of (block / 32, 32).
    """
    _check(block, x.shape[-1])
    if block == 1:
        return x
    wide = x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)
    low = block if block <= DIRECT else RADIX
    high = block // low
    y = wide.reshape(-1, low) @ hadamard(low, wide.dtype, x.device)
    if high > 1:
        y = hadamard(high, wide.dtype, x.device) @ y.reshape(-1, high, low)
    return y.reshape(x.shape).to(x.dtype)


def best_block(
    x: Tensor, w: Tensor, quantize: Callable[[Tensor], Tensor] | None = None, blocks: tuple[int, ...] = BLOCKS
) -> int:
    """The block for X W^T that minimises MSE(X) MSE(W) (arXiv 2306.11987); x is [..., n], w is [..., n].

    `quantize` gives the values that a transformed operand is rounded to; unless given, 4 bits at the mean
    step. The transform is orthogonal, hence errors are measured behind it. Of equals the smallest is taken.
    """
    width = x.shape[-1]
    if w.shape[-1] != width:
        raise InputError(f"operands of {width} and {w.shape[-1]} features have no product")
    rounded = quantize or _four_bits

    def cost(block: int) -> float:
        errors = ((rounded(y) - y).square().mean() for y in (transform(x, block), transform(w, block)))
        first, second = (float(error) for error in errors)
        return first * second

    return min((block for block in blocks if width % block == 0), key=cost)


def _four_bits(y: Tensor) -> Tensor:
    step = mean_step(y)
    return step_codes(y, step) * step


def _check(block: int, width: int | None = None) -> None:
    if block not in BLOCKS or (width is not None and width % block):
        raise InputError(
            f"no Hadamard blocks of {block}" + (f" in {width} features" if width else ""),
            fix=f"use a power of two up to {BLOCKS[-1]} that divides the features",
        )
