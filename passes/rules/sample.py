"""Random inputs for the domains of rules."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

Sampler = Callable[[Generator], Sequence[Any]]


def several(sampler: Sampler, count: int = 5) -> Callable[[Generator], Iterable[Sequence[Any]]]:
    """A domain that draws `count` samples."""
    return lambda generator: (sampler(generator) for _ in range(count))


def normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def positive(generator: Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1


def choose(generator: Generator, *options: Any) -> Any:
    return options[int(torch.randint(len(options), (), generator=generator))]
