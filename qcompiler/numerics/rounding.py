"""Rounding to integers: half-even everywhere by default, the others for hardware parity and training."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import prod

import numpy as np
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
    """floor(x + u) for noise u in [0, 1): the mean is x, the variance frac * (1 - frac) <= 1/4.

    Written as floor(x) + [frac >= 1 - u], since 1 - u is exact where x + u is not. Unbiased only as
    long as nothing clips afterwards.
    """
    floor = torch.floor(x)
    return floor + (x - floor >= 1 - noise).to(x.dtype)


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


def counter_noise(
    shape: Sequence[int], *, seed: int, step: int, tensor_id: int | str, offset: int = 0
) -> Tensor:
    """Uniform float32 noise in [0, 1) that is a function of (seed, step, tensor_id, element) only.

    noise[i] = philox(key = (seed, tensor_id), counter = ((offset + i) // 8, 0, step, 0))[(offset + i) % 8]

    so that a recomputed activation, or a part of it that starts at element `offset`, gets the same bits.
    Philox-4x64: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A block of it
    is four 64-bit words, hence eight elements; 24 bits of each half word fill a float32 exactly.
    """
    count = prod(shape)
    block, start = divmod(offset, 8)
    key = np.array([seed % 2**64, _word(tensor_id)], dtype=np.uint64)
    counter = np.array([block, 0, step % 2**64, 0], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(4 * -(-(start + count) // 8))
    halves = np.asarray(words, dtype="<u8").view("<u4")[start : start + count]
    return torch.from_numpy((halves >> 8).astype(np.float32) * np.float32(2.0**-24)).reshape(tuple(shape))


def _word(tensor_id: int | str) -> int:
    """64 bits of an identity: a number as it is, a name by its hash (the same in every process)."""
    if isinstance(tensor_id, int):
        return tensor_id % 2**64
    return int.from_bytes(blake2b(tensor_id.encode(), digest_size=8).digest(), "little")
