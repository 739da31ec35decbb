"""A decoder on our own kernels whose cache stays where it is: its program without what copies the cache.

enter(past), kernels, leave(cache)   -->   kernels
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompiler.backends.memory import cache_shapes, check_fits
from qcompiler.backends.tvm.pages import arranged
from qcompiler.backends.tvm.program import Enter, Leave
from qcompiler.backends.tvm.ready import Ready

CHUNKS = (64, 8, 1)  # tokens of a call: a program each, and no more, whatever the length of a prompt


class KeptMemory:
    """The cache of one sequence.

    Invariant: the graph's inputs are tokens, start and the cache, and each part of the cache is written by
    one attention of ours, which alone reads it.
    """

    def __init__(self, executable: Any) -> None:
        self.executable = executable
        self.shapes = [(1, *shape[1:]) for shape in cache_shapes(executable.graph)]
        self.capacity, self.length = self.shapes[0][2], 0
        program = self.program(1).program
        found = {step.node: step.name for step in program.steps if isinstance(step, Enter)}
        entering = [found[past] for past in executable.graph.inputs[2:]]
        self.caches = arranged(
            {name: np.zeros(program.stores[name].plane.size, np.float32) for name in entering}
        )
        self.programs: dict[int, Ready] = {}

    def fill(self, cache: Sequence[Tensor], length: int) -> None:
        for memory, rows in zip(self.caches.values(), cache, strict=True):
            memory[: rows.numel()] = rows.reshape(-1).numpy()
        self.length = length

    def feed(self, tokens: Tensor) -> Tensor:
        """[1, T] tokens behind those fed before  -->  what the decoder returns for the last ones."""
        check_fits(self.length, tokens, self.capacity)
        begin, found = 0, tokens
        with self.executable.turn, torch.no_grad():
            for size in chunks(tokens.shape[1]):
                found = self.step(tokens[:, begin : begin + size])
                begin += size
        return found

    def step(self, tokens: Tensor) -> Tensor:
        size, graph = tokens.shape[1], self.executable.graph
        if size not in self.programs:
            self.programs[size] = self.program(size).without(Enter | Leave, self.caches)
        given = dict(zip(graph.inputs, (tokens, torch.tensor(self.length)), strict=False))
        logits: Tensor = self.programs[size].run(given)[graph.results[0]]
        self.length += size  # not before: what was interrupted has no tokens in the cache
        return logits

    def program(self, tokens: int) -> Ready:
        """The program for so many tokens; the shapes are all that it looks at."""
        shapes = [(1, tokens), (), *self.shapes]
        ready: Ready = self.executable.ready([torch.empty(shape, device="meta") for shape in shapes])
        return ready


def chunks(length: int) -> Iterator[int]:
    """A length as a sum of few sizes, the largest first."""
    for size in CHUNKS:
        yield from [size] * (length // size)
        length %= size
