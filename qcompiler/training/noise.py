"""The key of a training run's draws: the seed, how many forward passes there were, and the process's rank.

fw(*inputs) with noise_key()  -->  fw'(*inputs, key)        and a wrapper that gives the key of this step
"""

import threading

import torch
from torch import Tensor

from qcompiler.numerics.philox import noise_key


class Noise:
    """Counts the forward passes of a model, so that a run that is repeated draws the same again.

    `ordinals` are handed out to values: no two values of the model share their draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.step = 0
        self.ordinals = 0
        self.lock = threading.Lock()

    def take(self, count: int) -> int:
        """The first of `count` fresh ordinals."""
        with self.lock:
            first = self.ordinals
            self.ordinals += count
        return first

    def key(self) -> Tensor:
        """The key of the next forward pass."""
        with self.lock:
            step = self.step
            self.step += 1
        return noise_key(self.seed, step, rank())


def rank() -> int:
    """This process among those that train together."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
