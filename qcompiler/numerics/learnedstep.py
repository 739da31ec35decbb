"""The step of a symmetric quantizer that is learned or follows the mean (LSQ, arXiv 1902.08153)."""

import math

import torch
from torch import Tensor


def mean_step(x: Tensor, bits: int = 4) -> Tensor:
    """s = 2 mean|x| / sqrt(Q) + 1e-10, Q = 2^(bits - 1) - 1: where learning starts, or each step anew; ()."""
    return x.detach().to(torch.float32).abs().mean() * (2 / math.sqrt(_highest(bits))) + 1e-10


def step_codes(x: Tensor, step: Tensor, bits: int = 4) -> Tensor:
    """q = clamp(rne(x / s), -Q, Q), int8; a NaN becomes 0."""
    highest = _highest(bits)
    ratio = x.to(torch.float32) / step
    return ratio.round_().clamp_(-highest, highest).nan_to_num_(nan=0.0).to(torch.int8)


def within_step(x: Tensor, step: Tensor, bits: int = 4) -> Tensor:
    """|x / s| <= Q, bool: where a gradient passes straight through."""
    return (x.to(torch.float32) / step).abs() <= _highest(bits)


def step_gradient(gradient: Tensor, x: Tensor, step: Tensor, bits: int = 4) -> Tensor:
    """dL/ds = sum(gradient * (q - [|x / s| <= Q] x / s)) / sqrt(Q n), gradient with respect to q s; ()."""
    residual = step_codes(x, step, bits) - torch.where(within_step(x, step, bits), x / step, 0)
    return (gradient * residual).sum() / math.sqrt(_highest(bits) * x.numel())


def _highest(bits: int) -> int:
    return (1 << (bits - 1)) - 1
