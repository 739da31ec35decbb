"""A decoder on our own kernels whose cache stays where it is: its program without what copies the cache.

enter(past), kernels, leave(cache)   -->   kernels
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompiler.backends.memory import cache_shapes, check_fits
from qcompiler.backends.tvm.direct import direct
from qcompiler.backends.tvm.pages import arranged
from qcompiler.backends.tvm.program import Enter, Leave
from qcompiler.backends.tvm.ready import Ready
from qcompiler.ir import Graph

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
        self.steps: dict[int, Callable[[list[int], int], Tensor]] = {}

    def fill(self, cache: Sequence[Tensor], length: int) -> None:
        for memory, rows in zip(self.caches.values(), cache, strict=True):
            memory[: rows.numel()] = rows.reshape(-1).numpy()
        self.length = length

    def feed(self, tokens: Tensor) -> Tensor:
        """[1, T] tokens behind those fed before  -->  what the decoder returns for the last ones."""
        (line,) = tokens.tolist()
        check_fits(self.length, len(line), self.capacity)
        begin, found = 0, tokens
        with self.executable.turn:
            if len(line) in self.steps:  # as of every token that is generated: straight to it
                return self.step(line)
            for size in chunks(len(line)):
                found = self.step(line[begin : begin + size])
                begin += size
        return found

    def step(self, tokens: list[int]) -> Tensor:
        size = len(tokens)
        if size not in self.steps:
            self.steps[size] = self.made(size)
        logits = self.steps[size](tokens, self.length)
        self.length += size  # not before: what was interrupted has no tokens in the cache
        return logits

    @torch.no_grad()
    def made(self, size: int) -> Callable[[list[int], int], Tensor]:
        ready, graph = self.program(size).without(Enter | Leave, self.caches), self.executable.graph
        return direct(ready, graph) or partial(by_torch, ready, graph)

    def program(self, tokens: int) -> Ready:
        """The program for so many tokens; the shapes are all that it looks at."""
        shapes = [(1, tokens), (), *self.shapes]
        ready: Ready = self.executable.ready([torch.empty(shape, device="meta") for shape in shapes])
        return ready


@torch.no_grad()
def by_torch(ready: Ready, graph: Graph, tokens: list[int], start: int) -> Tensor:
    """A step in which torch computes something as well."""
    given = dict(zip(graph.inputs, (torch.tensor([tokens]), torch.tensor(start)), strict=False))
    logits: Tensor = ready.run(given)[graph.results[0]]
    return logits


def chunks(length: int) -> Iterator[int]:
    """A length as a sum of few sizes, the largest first."""
    for size in CHUNKS:
        yield from [size] * (length // size)
        length %= size
