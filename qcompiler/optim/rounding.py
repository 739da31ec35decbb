"""Weights in bfloat16 are updated with stochastic rounding, since most updates are below half a step."""

import torch
from torch import Tensor

from qcompiler.ir.draws import draws
from qcompiler.numerics import Purpose, noise_key


def to_bfloat16(x: Tensor, noise: Tensor) -> Tensor:
    """One of the two bfloat16 neighbours of float32 numbers, with x as the mean.

    x = (-1)^sign * (top + low / 2^16)    -->    top + [noise < low / 2^16]        in steps of bfloat16

    A bfloat16 number is the upper half of a float32, so the fraction is the lower half and exact. Noise is
    uniform on [0, 1). A number that bfloat16 holds is left alone, and so are infinities and NaN, whose bits
    a carry would turn into numbers.
    """
    bits = x.view(torch.int32)
    carry = (noise * 2**16 < (bits & 0xFFFF)).to(torch.int32) << 16
    rounded = ((bits & -0x10000) + carry).view(torch.float32)
    return torch.where(torch.isfinite(x), rounded, x).to(torch.bfloat16)


def weight_noise(
    count: int, *, seed: int, step: int, ordinal: int, offset: int, device: torch.device
) -> Tensor:
    """Noise for `count` elements from `offset` on of the parameter with this ordinal, in this step.

    A pure function of its arguments: replicas round alike, and a shard rounds as the whole would.
    """
    key = noise_key(seed, step).to(device)
    noise: Tensor = draws(key, count, ordinal, Purpose.WEIGHT_UPDATE, offset)
    return noise
