"""Language models: a decoder compiled once for prompts and steps.

    compile_decoder : (decoder, recipe, ...) -> LanguageModel

How a LanguageModel generates stands in `generation`.

A decoder is an nn.Module with the method empty_cache(batch, capacity) and the call

    tokens [B, T], start, cache  -->  logits [B, T, vocabulary], cache

The length T stays symbolic, so a prompt, a part of one and a step run on one graph and one set of weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler import api
from qcompiler.backends import AUTO, check_threads, find_backend
from qcompiler.errors import ArtifactError, CalibrationError, InputError
from qcompiler.generation import LanguageModel, as_prompt, check_room
from qcompiler.ir import Graph, spec
from qcompiler.job import take
from qcompiler.passes.decide import decide
from qcompiler.passes.forms import forms
from qcompiler.proof import prove
from qcompiler.recipe import Recipe, find_recipe
from qcompiler.steps import Steps
from qcompiler.target import Target, find_target

LEAST_CAPACITY = 3
PROMPTS, PROMPT_LENGTH = 2, 33  # without calibration data: random prompts, to compare and to time on


class Last(nn.Module):
    """The decoder with the logits of its last token only, [B, vocabulary]: the others are not asked for."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, start: Tensor, cache: Any) -> tuple[Tensor, Any]:
        logits, cache = self.decoder(tokens, start, cache)
        return logits[:, -1], cache


def compile_decoder(
    decoder: nn.Module,
    *,
    capacity: int | None = None,
    calibration: Iterable[Tensor | list[int]] | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe = "w4a16",
    target: str | Target = "cpu",
    backend: str = AUTO,
    strict: bool = False,
    threads: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> LanguageModel:
    """Quantize a decoder and prove it on prompts and on steps; see `compile` for what is not said here.

    capacity: how many tokens a sequence may have; all positions of the decoder if absent.
    calibration: prompts of at least 3 tokens, as lists of ids or as [1, T]; random ones if absent, which a
        recipe that takes ranges from data refuses.
    """
    check_threads(threads)
    chosen, aim = find_recipe(recipe), find_target(target, backend)
    engine = find_backend(backend, aim)
    if calibration is None and chosen.linear_mode == "static":
        raise CalibrationError(
            f"recipe '{chosen.name}' takes ranges from data, and there are no prompts",
            fix="pass calibration=[...], or use a recipe without, such as 'int8-dynamic'",
        )
    with Steps(visible=progress) as steps, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        steps.tell("running the decoder")
        data = calls(decoder, prompts(decoder, calibration, capacity), capacity)
        job = take(
            Last(decoder).eval(),
            data[0],
            data,
            steps.tell,
            forms=forms(chosen, aim),
            dynamic={"tokens": (1,)},
            floats=aim.floats,
        )
        job = replace(job, name=type(decoder).__name__, example=data[1])  # what is timed is a step
        decision = decide(job.original, job.data, chosen, aim, tell=steps.tell)
        proof = prove(job, decision, engine, threads=threads, strict=strict, tell=steps.tell)
        race = api.raced(job, proof, engine, threads=threads, strict=strict, tell=steps.tell)
        compiled = api.assembled(job, proof, race, engine, threads=threads, seed=seed)
    return LanguageModel(compiled=compiled)


def load_decoder(path: str | Path, *, threads: int | None = None) -> LanguageModel:
    """Open what `LanguageModel.save` wrote; checks every file and executes nothing of it."""
    compiled = api.load(path, threads=threads)
    if not is_decoder(compiled.graph):
        raise ArtifactError(
            f"'{path}' holds no decoder",
            why="it does not map tokens, start and a cache to logits and a cache",
            fix="open it with qcompiler.load, or save what compile_decoder returned",
        )  # fmt: skip
    return LanguageModel(compiled=compiled)


def is_decoder(graph: Graph) -> bool:
    """Whether a graph is called as a decoder with the logits of its last token."""
    given, returned = [[spec(node) for node in nodes] for nodes in (graph.inputs, graph.results)]
    if len(given) < 4 or len(returned) != len(given) - 1 or None in given or None in returned:
        return False
    ranks = [len(found.shape) for found in (*given, *returned) if found]
    kinds = {found.dtype for found in given[:2] if found}
    return ranks == [2, 0, *[4] * (len(given) - 2), 2, *[4] * (len(returned) - 1)] and kinds == {torch.int64}


# ---------------------------------------------------------------- what a decoder is compiled on


def prompts(
    decoder: nn.Module, given: Iterable[Tensor | list[int]] | None, capacity: int | None
) -> list[Tensor]:
    """The calibration data, or random tokens for want of any."""
    if given is not None:
        found = [torch.tensor([x]) if is_list_of_ids(x) else x for x in given]
        other = [x for x in found if not is_prompt(x)]
        if not found or other:
            have = described(other[0]) if other else "nothing"
            raise CalibrationError(
                f"the prompts hold {have}", why="a prompt is at least 3 tokens, as a list or as [1, T]",
                fix="pass a list of prompts",
            )  # fmt: skip
        vocabulary = vocabulary_of(decoder, capacity)
        return [as_prompt(prompt, vocabulary) for prompt in found]
    length = min(PROMPT_LENGTH, emptied(decoder, capacity)[0][0].shape[2])
    return list(torch.randint(vocabulary_of(decoder, capacity), (PROMPTS, 1, length)))


def is_prompt(given: Any) -> bool:
    return isinstance(given, Tensor) and given.dim() == 2 and given.shape[0] == 1 and given.shape[1] >= 3


def is_list_of_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(token, int) for token in given)


def described(given: Any) -> str:
    if isinstance(given, Tensor):
        return f"a tensor of shape {list(given.shape)}"
    return f"a {type(given).__name__}"


@torch.no_grad()
def vocabulary_of(decoder: nn.Module, capacity: int | None) -> int:
    """As many logits as the decoder gives for a token."""
    tokens, start = torch.zeros(1, 2, dtype=torch.int64), torch.tensor(0)
    return int(decoder(tokens, start, emptied(decoder, capacity))[0].shape[-1])


def emptied(decoder: nn.Module, capacity: int | None) -> Any:
    """The decoder's own empty cache for one sequence."""
    make = getattr(decoder, "empty_cache", None)
    if make is None:
        raise InputError(
            f"a {type(decoder).__name__} is no decoder", why="it has no method empty_cache(batch, capacity)",
            fix="wrap it in one; docs/language-models.md says what a decoder is",
        )  # fmt: skip
    if capacity is not None and not isinstance(capacity, int):
        raise InputError(
            f"the capacity is {capacity!r}", why="it is a number of tokens", fix="pass an integer"
        )
    if capacity is not None and capacity < LEAST_CAPACITY:
        raise InputError(
            f"the capacity is {capacity}", why="a prompt of two tokens and one behind it need 3",
            fix="choose a larger one",
        )  # fmt: skip
    try:
        return make(1, capacity)
    except ValueError as error:
        raise InputError(str(error).rstrip("."), fix="choose a smaller capacity") from error


def calls(decoder: nn.Module, given: Sequence[Tensor], capacity: int | None) -> list[Any]:
    """Two calls per prompt: all but its last token into an empty cache, then the last behind them."""
    found: list[Any] = []
    empty = emptied(decoder, capacity)
    for prompt in given:
        check_room(prompt.shape[1], None, empty[0][0].shape[2])
        before, last = prompt[:, :-1], prompt[:, -1:]
        with torch.no_grad():
            _, cache = decoder(before, torch.tensor(0), empty)
        found += [(before, torch.tensor(0), empty), (last, torch.tensor(before.shape[1]), cache)]
    return found


__all__ = ["LanguageModel", "compile_decoder", "load_decoder"]
