"""Rounding to integers: half-even everywhere by default, the others for hardware parity and training."""

from collections.abc import Callable

import torch
from torch import Tensor

from qcompiler.errors import RecipeError


def half_even(x: Tensor) -> Tensor:
    """Nearest, ties to the even neighbour (IEEE 754 default)."""
    return torch.round(x)


def half_up(x: Tensor) -> Tensor:
    """floor(x + 1/2) in real arithmetic; the float sum would round 0.49999997 up."""
    floor = torch.floor(x)
    return floor + (x - floor >= 0.5).to(x.dtype)


def half_down(x: Tensor) -> Tensor:
    """ceil(x - 1/2) = -half_up(-x)."""
    return -half_up(-x)


def half_toward_zero(x: Tensor) -> Tensor:
    """sign(x) * ceil(|x| - 1/2)."""
    return torch.sign(x) * half_down(x.abs())


def half_away(x: Tensor) -> Tensor:
    """sign(x) * floor(|x| + 1/2)."""
    return torch.sign(x) * half_up(x.abs())


def up(x: Tensor) -> Tensor:
    """ceil(x)."""
    return torch.ceil(x)


def stochastic(x: Tensor, noise: Tensor) -> Tensor:
    """floor(x) + [u < x - floor(x)] for noise u in [0, 1): the mean is x, the variance f (1 - f) <= 1/4.

    The fraction f = x - floor(x) is exact where the sum x + u is not: floor(255 + (1 - 2^-24)) is 256 in
    float32. Unbiased only as long as nothing clips afterwards.
    """
    floor = torch.floor(x)
    return floor + (noise < x - floor).to(x.dtype)


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "half_even": half_even,
    "half_up": half_up,
    "half_down": half_down,
    "half_toward_zero": half_toward_zero,
    "half_away": half_away,
    "up": up,
}
"""The roundings that need nothing but the number; "stochastic" needs noise as well."""


def round_by(x: Tensor, rounding: str, noise: Tensor | None = None) -> Tensor:
    """Round by the name of the mode; noise is given if and only if the mode is "stochastic"."""
    if rounding == "stochastic" and noise is not None:
        return stochastic(x, noise)
    if rounding in ROUNDINGS and noise is None:
        return ROUNDINGS[rounding](x)
    if rounding == "stochastic" or rounding in ROUNDINGS:
        raise RecipeError(
            f'rounding "{rounding}" with{"out" if noise is None else ""} noise',
            why="noise belongs to stochastic rounding and to no other",
        )
    raise RecipeError(f'unknown rounding "{rounding}"', fix=f"use one of {', '.join(ROUNDINGS)}, stochastic")
