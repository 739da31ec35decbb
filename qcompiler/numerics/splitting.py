"""A gradient as two 4-bit tensors, without bias (bit splitting, arXiv 2306.11987, mended)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.numerics.rounding import stochastic

HIGHEST = 7  # of a signed 4-bit code whose lowest is not used
STEP = 2 * HIGHEST  # an upper code in lower ones: remainders reach +-7 and no further
REACH = STEP * HIGHEST + HIGHEST  # 105 = 14 * 7 + 7, the largest sum


@dataclass(frozen=True, kw_only=True, eq=False)
class BitSplit:
    """g ~ (14 upper + lower) scale: int8 codes of -7 .. 7 of the shape of g; scale float32 ()."""

    upper: Tensor
    lower: Tensor
    scale: Tensor

    @property
    def value(self) -> Tensor:
        """(14 upper + lower) scale, float32."""
        return (self.upper.to(torch.float32) * STEP + self.lower) * self.scale

    @property
    def rows(self) -> Tensor:
        """[upper; lower], codes stacked along the first axis: [2 N, ...]."""
        return torch.cat((self.upper, self.lower))

    @property
    def factors(self) -> Tensor:
        """What each of `rows` stands for: 14 scale for the first N, scale for the others; [2 N] float32."""
        upper, lower = self.scale * STEP, self.scale
        return torch.cat((upper.expand(len(self.upper)), lower.expand(len(self.lower))))


def split_bits(g: Tensor, noise: Tensor) -> BitSplit:
    """Two codes of 4 bits for each element of g, whose mean over the noise is g.

    s = max|g| / 105        t = clamp(g / s, -105, 105)
    upper = clamp(rne(t / 14), -7, 7)        lower = SR(t - 14 upper)

    |t - 14 upper| <= 7 for every float32 t, so that stochastic rounding never has to be clipped: at a tie
    the remainder is exactly 7, and where t is past a tie by one unit in its last place, t / 14 is by at least
    8/14 of one, which does not round back. `noise` holds draws from [0, 1), one for each element of g.
    A NaN or an infinity makes the scale so, and with it all of the value.
    """
    wide = g.detach().to(torch.float32)
    amax = wide.abs().amax() if wide.numel() else wide.new_zeros(())
    scale = (amax / REACH).clamp(min=torch.finfo(torch.float32).tiny)
    t = (wide / scale).clamp_(-REACH, REACH).nan_to_num_(nan=0.0)
    upper = (t / STEP).round_().clamp_(-HIGHEST, HIGHEST)
    lower = stochastic(t - upper * STEP, noise.reshape(t.shape))
    return BitSplit(upper=upper.to(torch.int8), lower=lower.to(torch.int8), scale=scale)
