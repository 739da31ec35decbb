"""From the largest magnitude to a scale: of this step, or of the steps before it."""

import torch
from torch import Tensor

from qcompiler.numerics.exponent import ceil_log2, exp2

HISTORY = 1024


def amax_scale(amax: Tensor, largest: float, *, power_of_two: bool = False) -> Tensor:
    """The smallest scale s with s * largest >= amax: a float32, or a power of two; of the shape of amax.

    1 where amax = 0, NaN where it is not finite, so that overflow stays visible. Nothing here waits for a
    device to tell a value.
    """
    wide = amax.to(torch.float64)
    exact = wide / largest
    if power_of_two:
        scale = exp2(ceil_log2(exact).clamp(-126, 127))
    else:
        scale = exact.to(torch.float32)
        above = torch.nextafter(scale, torch.full_like(scale, torch.inf))
        scale = torch.where(scale < exact, above, scale).clamp(min=torch.finfo(torch.float32).tiny)
    scale = scale.masked_fill(wide == 0, 1.0)
    return scale.masked_fill(~wide.isfinite(), torch.nan)


def delayed_scale(history: Tensor, largest: float, margin: int = 0) -> Tensor:
    """s = 2^margin max(history) / largest, of each history [..., length]: scales known before their tensors.

    A tensor that exceeds its history by more than 2^margin saturates; the step after knows of it.
    """
    return amax_scale(history.amax(-1), largest) * 2.0**margin


def scale_of_step(seen: Tensor, amax: Tensor, largest: float, margin: int = 0) -> Tensor:
    """Of a tensor whose largest magnitude before was `seen`: delayed, or current where there was none.

    seen > 0:  2^margin seen / largest        seen = 0:  amax / largest
    """
    return torch.where(
        seen > 0, delayed_scale(seen.unsqueeze(-1), largest, margin), amax_scale(amax, largest)
    )


def amax_history(length: int = HISTORY) -> Tensor:
    """Where delayed scaling starts: no magnitude seen, [length] float32, and hence a scale of 1."""
    return torch.zeros(length)


def remember_amax(history: Tensor, amax: Tensor) -> Tensor:
    """Histories [..., length] with one more step, without their oldest; one that was not finite leaves 0.

    [a_1, ..., a_n], a  -->  [a, a_1, ..., a_(n-1)]
    """
    seen = amax.to(history.dtype).unsqueeze(-1)
    return torch.cat((torch.where(seen.isfinite(), seen, 0.0), history[..., :-1]), -1)
