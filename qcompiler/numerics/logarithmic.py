"""A gradient in 4 bits without bias, on powers of two (LUQ, arXiv 2112.10769)."""

import torch
from torch import Tensor

HIGHEST = 64  # three bits of exponent hold zero and the seven powers 1, 2, ..., 2^6


def log_codes(g: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Codes 0, +-1, +-2, ..., +-64 of the shape of g, int8, whose mean over the noise is g / scale; scale ().

    scale = max|g| / 64        t = |g| / scale
    l = 2^floor(log2 t), h = 2 l        where t >= 1: a power or the next one
    l = 0, h = 1                        where t < 1: what would underflow is kept with probability t
    q = sign(g) (l + (h - l) [u < (t - l) / (h - l)])

    No t exceeds 64, so that nothing is clipped. `noise` holds draws u from [0, 1), one for each element of g.
    A NaN or an infinity makes the scale so.
    """
    wide = g.detach().to(torch.float32)
    amax = wide.abs().amax() if wide.numel() else wide.new_zeros(())
    scale = (amax / HIGHEST).clamp(min=torch.finfo(torch.float32).tiny)
    t = (wide / scale).clamp_(-HIGHEST, HIGHEST).nan_to_num_(nan=0.0)
    magnitude = t.abs()
    exponent = torch.frexp(magnitude).exponent  # magnitude = m 2^exponent, 1/2 <= m < 1
    low = torch.where(magnitude < 1, 0.0, torch.ldexp(torch.ones_like(t), exponent - 1))
    gap = low.clamp(min=1)  # h - l
    code = low + gap * (noise.reshape(t.shape) * gap < magnitude - low)  # both sides exact
    return (code * t.sign()).to(torch.int8), scale
