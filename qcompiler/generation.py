"""A compiled decoder that generates: feed the prompt, choose a token among the logits, feed it, and so on.

generate : (prompt, ...) -> token, token, ...
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qcompiler.api import Compiled
from qcompiler.backends.memory import Memory, cache_shapes, memory_of
from qcompiler.errors import InputError
from qcompiler.ir import spec
from qcompiler.report import Report


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A compiled decoder. Several sequences may be generated at a time; each has a cache of its own."""

    compiled: Compiled

    @property
    def capacity(self) -> int:
        """How many tokens a sequence may have."""
        return cache_shapes(self.compiled.graph)[0][2]

    @property
    def vocabulary(self) -> int:
        found = spec(self.compiled.graph.results[0])
        return int(found.shape[-1]) if found else 0

    def memory(self) -> Memory:
        """An empty cache for one sequence."""
        return memory_of(self.compiled.executable)

    def generate(
        self,
        tokens: Sequence[int] | Tensor,
        max_new_tokens: int | None = None,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        stop: int | Iterable[int] = (),
    ) -> Iterator[int]:
        """The tokens that follow a prompt, one by one; ends behind a token of `stop`, which it gives, too.

        max_new_tokens: as many as the cache has room for if None.
        temperature: 0 for the likeliest token, else a draw from softmax(logits / temperature).
        top_k: draws are among so many likeliest tokens.

        Raises InputError, before anything is computed, for a prompt that does not fit.
        """
        prompt = as_prompt(tokens, self.vocabulary)
        room = self.capacity - prompt.shape[1] + 1  # the last token is given and not remembered
        check_room(prompt.shape[1], max_new_tokens, self.capacity)
        if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):
            raise InputError(
                f"temperature {temperature} and top_k {top_k} describe no distribution",
                fix="use a temperature of at least 0 and a top_k of at least 1",
            )
        count = room if max_new_tokens is None else max_new_tokens
        choice = Choice(temperature=temperature, top_k=top_k, generator=torch.Generator().manual_seed(seed))
        last = frozenset([stop] if isinstance(stop, int) else stop)
        return following(self.memory(), prompt, count, choice, last)

    def report(self) -> Report:
        """What was decided, what runs, how exact and how fast a step is."""
        return self.compiled.report()

    def save(self, path: str | Path) -> None:
        """Write the artifact folder, as `Compiled.save` does."""
        self.compiled.save(path)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a token is chosen among the logits [vocabulary]."""

    temperature: float
    top_k: int | None
    generator: torch.Generator

    def of(self, logits: Tensor) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        kept, ids = logits.topk(len(logits) if self.top_k is None else min(self.top_k, len(logits)))
        shares = ((kept - kept[0]).double() / self.temperature).softmax(-1)  # the largest exponent is 0
        return int(ids[torch.multinomial(shares, 1, generator=self.generator)])


def following(
    memory: Memory, prompt: Tensor, count: int, choice: Choice, stop: frozenset[int]
) -> Iterator[int]:
    """feed, choose, give; a token is fed only when the one after it is asked for."""
    fed = prompt
    for _ in range(count):
        token = choice.of(memory.feed(fed)[0])
        yield token
        if token in stop:
            return
        fed = torch.tensor([[token]])


def as_prompt(tokens: Sequence[int] | Tensor, vocabulary: int) -> Tensor:
    """[1, T]; refuses what the decoder has no embedding for."""
    given = torch.as_tensor(tokens)
    prompt = given.to(torch.int64) if given.dim() == 2 else given.to(torch.int64).reshape(1, -1)
    if given.is_floating_point() and given.numel():
        raise InputError(
            f"the prompt holds {given.dtype} numbers", why="tokens are ids", fix="pass a list of integers"
        )
    if prompt.shape[0] != 1 or not prompt.shape[1]:
        raise InputError(
            f"the prompt has shape {list(prompt.shape)}", why="it is one sequence of at least one token",
            fix="pass a list of token ids",
        )  # fmt: skip
    low, high = int(prompt.min()), int(prompt.max())
    if low < 0 or high >= vocabulary:
        raise InputError(
            f"the prompt has a token {low if low < 0 else high}", why=f"the vocabulary has {vocabulary}",
            fix="use the tokenizer that belongs to the model",
        )  # fmt: skip
    return prompt


def check_room(length: int, more: int | None, capacity: int) -> None:
    """The prompt, and all new tokens but the last, must fit into the cache."""
    needed = length + max((more or 1) - 1, 0)
    if needed > capacity or (more is not None and more < 0):
        asked = "" if more is None else f" and {more} new ones are asked for"
        raise InputError(
            f"the prompt has {length} tokens{asked}", why=f"the cache holds {capacity}",
            fix="shorten it, or compile the decoder with a larger capacity",
        )  # fmt: skip
