"""qcompiler on a decoder: the model with a cache of fixed capacity, which a call writes in place."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import qcompiler as qc
from benchmarks.case import Case
from benchmarks.peers.base import Bind
from qcompiler.backends.memory import Memory, memory_of
from qcompiler.models.bundle import Inputs
from qcompiler.models.decoder import Growing

CAPACITY = 256  # tokens, as of the built-in models


@dataclass(frozen=True, kw_only=True)
class Decode:
    """`qc.compile` of the decoder inside the workload's `Growing`, on the same tokens and caches."""

    recipe: str | Mapping[str, Any]
    backend: str = "auto"

    def prepare(self, case: Case, folder: Path) -> Path | None:
        module = case.module()
        assert isinstance(module, Growing)
        calls = [with_room(module, inputs) for inputs in case.data().calibration]
        compiled = qc.compile(
            module.decoder, calls[0], calibration=calls, recipe=self.recipe, backend=self.backend, threads=1,
            progress=False,
        )  # fmt: skip
        compiled.save(folder / "model.qc")
        return folder / "model.qc"

    def open(self, case: Case, folder: Path) -> Bind:
        compiled = qc.load(folder / "model.qc", threads=1)
        module = case.module()
        assert isinstance(module, Growing)

        def bind(inputs: Inputs) -> Any:
            tokens, start, cache = with_room(module, inputs)
            memory = memory_of(compiled.executable)
            memory.fill(pytree.tree_leaves(cache), int(start))
            return partial(fed, memory, tokens, int(start))

        return bind


def with_room(module: Growing, inputs: Inputs) -> Inputs:
    """tokens, cache of `start` rows  -->  tokens, start, cache of CAPACITY rows"""
    tokens, *cache = inputs
    if not cache:
        return tokens, torch.tensor(0), module.decoder.empty_cache(1, CAPACITY)
    start = cache[0][0][0].shape[2]
    room = [tuple(F.pad(x, (0, 0, 0, CAPACITY - start)) for x in pair) for pair in cache[0]]
    return tokens, torch.tensor(start), room


def fed(memory: Memory, tokens: Tensor, start: int) -> Tensor:
    """The same tokens again: they write the rows that they wrote before."""
    memory.length = start
    return memory.feed(tokens)
