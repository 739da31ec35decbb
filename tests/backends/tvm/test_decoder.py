"""Decoders on our own kernels: what they generate, and the cache that stays in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import qcompiler as qc
from qcompiler import api
from qcompiler.backends.memory import HeldMemory, cache_shapes, memory_of
from qcompiler.backends.tvm import TvmExecutable
from qcompiler.backends.tvm.library import write_library
from qcompiler.backends.tvm.library.run import LibraryError, Model
from qcompiler.backends.tvm.memory import KeptMemory
from qcompiler.backends.tvm.program import Call
from qcompiler.errors import InputError
from tests.backends.tvm.sets import pytestmark
from tests.models.test_decoder import small

__all__ = ["pytestmark"]
CAPACITY, DEPTH = 32, 2
RECIPE: Any = {"base": "w4a16", "name": "groups of 16", "group_size": 16, "weight_method": "nearest"}


def made(family: Literal["llama", "gpt2"], backend: str, vocabulary: int = 50) -> qc.LanguageModel:
    """Without the speed guard: a model this small is no faster in few bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "raced", lambda *_, **__: None)
        return qc.compile_decoder(
            small(family, vocabulary), recipe=RECIPE, target="cpu-tvm", backend=backend, capacity=CAPACITY,
            threads=1, progress=False,
        )  # fmt: skip


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt2", marks=pytest.mark.thorough)])
def pair(request: pytest.FixtureRequest) -> tuple[qc.LanguageModel, qc.LanguageModel]:
    return made(request.param, "tvm"), made(request.param, "reference")


Pair = tuple[qc.LanguageModel, qc.LanguageModel]


def test_tokens_are_those_of_the_reference(pair: Pair) -> None:
    engine, reference = pair
    assert isinstance(engine.compiled.executable, TvmExecutable)
    for prompt in ([3, 1, 4], [15]):
        assert list(engine.generate(prompt, 12)) == list(reference.generate(prompt, 12))
    kernels = {row.kernel for row in engine.compiled.executable.execution(engine.compiled.plan).layers}
    assert {"few-bit linear", "norm", "cached attention"} <= kernels


def test_a_cache_in_place_gives_what_is_handed_on_gives(pair: Pair) -> None:
    executable = pair[0].compiled.executable
    kept, held = memory_of(executable), HeldMemory(executable)
    assert isinstance(kept, KeptMemory)
    for part in torch.split(torch.randint(0, 50, (1, 27)), [5, 19, 1, 1, 1], 1):
        assert torch.equal(kept.feed(part), held.feed(part))
    assert kept.length == held.length == 27
    other = memory_of(executable)  # a sequence of its own
    assert torch.equal(other.feed(torch.tensor([[7]])), HeldMemory(executable).feed(torch.tensor([[7]])))
    resumed = memory_of(executable)
    resumed.fill(held.cache, 27)
    assert torch.equal(resumed.feed(torch.tensor([[7]])), held.feed(torch.tensor([[7]])))
    with pytest.raises(InputError, match="do not fit"):
        kept.feed(torch.zeros(1, CAPACITY - 27 + 1, dtype=torch.int64))


@pytest.mark.parametrize("start", [CAPACITY, CAPACITY + 5, -1])
def test_a_position_without_room_is_refused(pair: Pair, start: int) -> None:
    """Behind the end of a cache a kernel would write into what is not its own."""
    executable = pair[0].compiled.executable
    empty = [torch.zeros(1, *shape[1:]) for shape in cache_shapes(executable.graph)]
    with pytest.raises(InputError, match=f"'start' is {start}, because the cache has room behind 0 .. 31"):
        executable([torch.tensor([[7]]), torch.tensor(start), *empty])


def test_rows_are_rounded_where_they_are_computed(pair: Pair) -> None:
    """By norms, gates and attention; alone only the last token, with which the last layer goes on."""
    executable = pair[0].compiled.executable
    assert isinstance(executable, TvmExecutable)
    executable.memory().feed(torch.tensor([[7]]))
    for ready in executable.programs.values():
        calls = [step.arguments for step in ready.program.steps if isinstance(step, Call)]
        rounding = [names for names in calls if names[-1].endswith(".sums")]  # floats, codes, scales, sums
        assert len({names[-4] for names in rounding}) == len(rounding) == 4 * DEPTH + 1
        assert [names[0] for names in rounding if len(names) == 4] == ["select_int"]


def test_programs_share_their_weights(pair: Pair) -> None:
    executable = pair[0].compiled.executable
    assert isinstance(executable, TvmExecutable)
    executable.memory().feed(torch.randint(0, 50, (1, 9)))
    first, *others = executable.programs.values()
    (name,) = [name for name in first.program.constants if name.startswith("linear") and "weights" in name][
        :1
    ]
    assert others
    assert all(other.arrays[name] is first.arrays[name] for other in others)


# Where positions are embedded, their table ends first.
REFUSED = rf"'start' is -?\d+, and the cache has room behind 0 \.\. {CAPACITY - 1} only"


def test_a_step_as_a_library_takes_a_cache_and_returns_or_keeps_it(pair: Pair, tmp_path: Path) -> None:
    """Behind a prompt of three tokens: positions count from `start`, which is read at run time."""
    executable = pair[0].compiled.executable
    assert isinstance(executable, TvmExecutable)
    torch.manual_seed(0)
    empty = [torch.zeros(1, *shape[1:]) for shape in cache_shapes(executable.graph)]
    prompt, token = torch.tensor([[3, 1, 4]]), torch.tensor([[15]])
    folder = write_library(executable, [token, torch.tensor(0), *empty], tmp_path / "step").folder
    _, *cache = executable([prompt, torch.tensor(0), *empty])
    given = [token, torch.tensor(3), *cache]
    found = Model(folder)(*(x.numpy() for x in given))
    assert [x.tobytes() for x in found] == [x.numpy().tobytes() for x in executable(given)]
    kept, cache = Model(folder, keep_cache=True), empty
    assert [port["name"] for port in kept.inputs] == ["tokens", "start"]
    for turn, word in enumerate([3, 1, 4, 1, 5]):
        (logits,) = kept(np.array([[word]]), np.array(turn))
        wanted, *cache = executable([torch.tensor([[word]]), torch.tensor(turn), *cache])
        assert logits.tobytes() == wanted.numpy().tobytes()
    for start in (-1, CAPACITY):
        with pytest.raises(LibraryError, match=REFUSED):
            kept(np.array([[1]]), np.array(start))
