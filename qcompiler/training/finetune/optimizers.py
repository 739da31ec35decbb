"""The optimizers by name, and which of them keeps in float32 what another keeps in 8 bits."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.errors import RecipeError
from qcompiler.optim import Adam8bit, AdamW8bit, SGD8bit


@dataclass(frozen=True, kw_only=True)
class Choice:
    """make: (parameters, lr=) -> optimizer. plain: the one with states in float32, "" for itself."""

    make: Callable[..., torch.optim.Optimizer]
    plain: str = ""


OPTIMIZERS: Mapping[str, Choice] = {
    "adamw": Choice(make=partial(torch.optim.AdamW, betas=(0.9, 0.95))),
    "adam": Choice(make=partial(torch.optim.Adam, betas=(0.9, 0.95))),
    "sgd": Choice(make=partial(torch.optim.SGD, momentum=0.9)),
    "adamw8bit": Choice(make=partial(AdamW8bit, betas=(0.9, 0.95)), plain="adamw"),
    "adam8bit": Choice(make=partial(Adam8bit, betas=(0.9, 0.95)), plain="adam"),
    "sgd8bit": Choice(make=partial(SGD8bit, momentum=0.9), plain="sgd"),
}


def find_optimizer(name: str) -> Choice:
    if name not in OPTIMIZERS:
        raise RecipeError(f"there is no optimizer '{name}'", fix=f"use one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def find_plain(name: str) -> Choice:
    """What float is trained with beside it: the same, with states in float32."""
    return find_optimizer(find_optimizer(name).plain or name)


def make(choice: Choice, parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return choice.make([parameter for parameter in parameters if parameter.requires_grad], lr=rate)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all that it keeps between steps."""
    kept: Iterable[Mapping[str, Any]] = optimizer.state.values()
    return sum(value.nbytes for state in kept for value in state.values() if isinstance(value, Tensor))
