"""Batches of text, drawn from a seed: the same again at every call."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from qcompiler.models.charlm import windows
from qcompiler.training.finetune.task import Batch

LENGTH = 64
VALIDATION_SEED = 1000
VALIDATION = 8  # batches, each as large as those of training


def drawn(
    text: Tensor, batch: int, length: int, seed: int, to_batch: Callable[[Tensor], Batch]
) -> Iterator[Batch]:
    """Windows of a text [T] or of one with labels [T, 2], without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield to_batch(windows(text, batch, length, generator))


def validation(
    text: Tensor, batch: int, length: int, to_batch: Callable[[Tensor], Batch]
) -> tuple[Batch, ...]:
    draws = drawn(text, batch, length, VALIDATION_SEED, to_batch)
    return tuple(next(draws) for _ in range(VALIDATION))
