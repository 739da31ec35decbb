"""What a decoder remembers between calls: its keys and values.

feed(tokens [1, T])  -->  logits, with the cache of T tokens more
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from qcompiler.backends.base import Executable
from qcompiler.errors import InputError
from qcompiler.ir import Graph, TensorSpec, spec

qc = torch.ops.qcompiler


class Memory(Protocol):
    """The cache of one sequence; `length` tokens of it are filled."""

    length: int

    def feed(self, tokens: Tensor) -> Tensor:
        """[1, T] tokens behind those fed before  -->  what the decoder returns for them, less the cache."""

    def fill(self, cache: Sequence[Tensor], length: int) -> None:
        """Go on behind `length` tokens whose cache is known, as the graph takes it."""


@runtime_checkable
class Remembers(Protocol):
    """An executable that can keep the cache of its graph in place."""

    def memory(self) -> Memory: ...


def check_fits(length: int, tokens: int, capacity: int) -> None:
    """Refuse tokens that the cache has no room for: behind its end an engine writes elsewhere, or nowhere."""
    if not 0 <= length <= capacity - tokens:
        raise InputError(
            f"{tokens} tokens behind {length} do not fit", why=f"the cache holds {capacity}",
            fix="begin a new sequence, or compile the decoder with a larger capacity",
        )  # fmt: skip


class HeldMemory:
    """The cache that each call returns, handed to the next one; for every executable."""

    def __init__(self, executable: Executable) -> None:
        self.executable = executable
        self.cache = [
            torch.zeros(1, *found.shape[1:], dtype=found.dtype) for found in cache_specs(executable.graph)
        ]
        self.length = 0

    def fill(self, cache: Sequence[Tensor], length: int) -> None:
        self.cache, self.length = list(cache), length

    def feed(self, tokens: Tensor) -> Tensor:
        check_fits(self.length, tokens.shape[1], self.cache[0].shape[2])
        returned = self.executable([tokens, torch.tensor(self.length), *self.cache])
        logits: Tensor
        logits, *self.cache = pytree.tree_leaves(returned)
        self.length += tokens.shape[1]
        return logits


def memory_of(executable: Executable) -> Memory:
    """An empty memory: in place where the engine can and the graph allows it."""
    if isinstance(executable, Remembers) and writes_in_place(executable.graph):
        return executable.memory()
    return HeldMemory(executable)


def cache_specs(graph: Graph) -> list[TensorSpec]:
    """What a decoder's inputs behind tokens and start are."""
    return [found for node in graph.inputs[2:] if (found := spec(node)) is not None]


def cache_shapes(graph: Graph) -> list[tuple[int, ...]]:
    return [found.shape for found in cache_specs(graph)]


def writes_in_place(graph: Graph) -> bool:
    """Whether each cache that is returned is the one that was given, with rows written into it.

    Only then may both be one buffer: the op reads nothing of the past where it writes the present.
    """
    given, returned = graph.inputs[2:], graph.results[1:]
    calls = [node.args[0] if node.op == "call_function" and node.args else None for node in returned]
    pasts = [
        call.args[position % 2 + 1]  # type: ignore[union-attr]  # keys, values, keys, ...
        for position, call in enumerate(calls)
        if getattr(call, "target", None) is qc.cached_attention.default
    ]
    return pasts == given and all(len(node.users) == 1 for node in given)
