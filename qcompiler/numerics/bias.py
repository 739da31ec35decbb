"""Whether random draws have the right mean."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Bias:
    """What `count` draws of a tensor say about their mean; lengths are relative to the exact tensor's.

    error  sqrt(mean |draw - exact|^2)        of one draw
    bias   |mean of the draws - exact|        close to `floor` where there is none
    z      a standard normal number where there is none, and positive where there is
    """

    count: int
    error: float
    bias: float
    z: float

    @property
    def floor(self) -> float:
        """error / sqrt(count): what the mean of unbiased draws is off by."""
        return self.error / math.sqrt(self.count)


def measure_bias(draws: Iterable[Tensor], exact: Tensor) -> Bias:
    """Compare the mean of independent draws with the exact tensor, element by element and in one number.

    e_k = draw_k - exact        d_k = (e_1 + ... + e_(k-1)) / |e_1 + ... + e_(k-1)|        p_k = <e_k, d_k>
    z = sum p_k / sqrt(sum p_k^2)

    Each error is projected on where those before it point. Without bias that is a martingale difference,
    however the elements depend on one another, and z is standard normal for many draws; a bias b, in
    whichever elements, is what the d_k come to point to, and z grows as |b| sqrt(count) over the noise there.
    """
    reference = exact.detach().double().flatten()
    total, power, projected, squares, count = torch.zeros_like(reference), 0.0, 0.0, 0.0, 0
    for draw in draws:
        error = draw.detach().double().flatten() - reference
        length = float(total.norm())
        along = float(error @ total) / length if length else 0.0
        projected, squares = projected + along, squares + along**2
        total, power, count = total + error, power + float(error @ error), count + 1
    if not count:
        raise InputError("no draws, hence no mean")
    unit = float(reference.norm()) or 1.0
    return Bias(
        count=count,
        error=math.sqrt(power / count) / unit,
        bias=float(total.norm()) / count / unit,
        z=projected / math.sqrt(squares) if squares else 0.0,
    )
