"""Several threads: the result of one, to the last bit; nobody left behind; no launch for what is small."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.tvm import Tvm, TvmExecutable, threads
from qcompiler.backends.tvm.build import compiled, handed, host, placed
from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.threads import Team, divided
from qcompiler.ir import Graph
from qcompiler.proof import quantized
from qcompiler.target import find_target
from tests.backends.tvm.sets import pytestmark
from tests.backends.tvm.test_lower import Network
from tests.backends.tvm.test_transformer import Blocks

__all__ = ["pytestmark"]
TARGET = find_target("cpu", "tvm")


def convolutions(seed: int) -> tuple[Graph, list[torch.Tensor]]:
    torch.manual_seed(seed)
    network = Network(seed).eval()
    images = [network.images(count, 2) for count in (1, 3)]
    decision = explain(network, network.images(2, 0), calibration=[network.images(2, 1)], target=TARGET)
    return quantized(decision), images


def transformer(seed: int) -> tuple[Graph, list[torch.Tensor]]:
    torch.manual_seed(seed)
    network = Blocks(seed).eval()
    rows = [network.rows(count, 2) for count in (1, 3)]
    decision = explain(network, network.rows(2, 0), calibration=[network.rows(2, 1)], target=TARGET)
    return quantized(decision), rows


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share whatever can be shared."""
    monkeypatch.setattr(threads, "WORTH_SHARING", 0)


def shared(engine: TvmExecutable) -> int:
    """How many functions of all programs are divided."""
    found = [function for ready in engine.programs.values() for function in ready.functions.values()]
    return sum(isinstance(function, partial) for function in found)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize(
    "made", [partial(convolutions, 3), partial(convolutions, 5), partial(transformer, 1)]
)
def test_any_number_of_threads_computes_the_same(made: Any, count: int) -> None:
    graph, inputs = made()
    alone, together = (Tvm(TARGET).lower(graph, threads=n) for n in (1, count))
    assert isinstance(alone, TvmExecutable) and isinstance(together, TvmExecutable)
    for x in inputs:
        for one, other in zip(alone([x]), together([x]), strict=True):
            assert torch.equal(one, other)
    assert all(found.max_lsb <= found.allowed for found in together.verify([inputs[-1]]))
    assert shared(alone) == 0 and shared(together) > 5


@pytest.mark.usefixtures("eager")
def test_calls_from_several_threads_take_turns() -> None:
    graph, (x, _) = convolutions(3)
    engine, reference = Tvm(TARGET).lower(graph, threads=2), Reference(TARGET).lower(graph)
    inputs = [x * factor for factor in (0.2, 0.5, 1.0, 1.5)]
    wanted = [reference([each])[0] for each in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda each: engine([each])[0], inputs)
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def counting(turns: int) -> Any:
    """A function that adds 1 to 16 numbers per turn."""
    k = Builder("count")
    x = k.argument("x", "int32", 16 * turns)
    with k.loop(turns, shared=True) as i:
        k.store(x, i * 16, k.load(x, i * 16, 16) + splat(1, "int32", 16), 16)
    return k.function()


def test_what_is_small_stays_whole() -> None:
    assert divided(counting(100)) is None
    found = divided(counting(threads.WORTH_SHARING))
    assert found is not None and found[1] == threads.WORTH_SHARING
    assert Tvm().settings(convolutions(3)[0], threads=2)["threads"] == 2


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_every_turn_is_taken_once(size: int) -> None:
    found = divided(counting(10))
    assert found is not None
    function, turns = compiled([found[0]], host())["count"], found[1]
    numbers = placed(np.zeros(160, np.int32))
    Team(size).run(function, turns, handed(numbers))
    assert (numbers == 1).all()


def test_an_error_of_any_thread_is_raised_and_the_team_goes_on() -> None:
    def fails_at(turn: int, first: int, last: int) -> None:
        done.append((first, last))
        if first <= turn < last:
            raise ValueError(f"turn {turn}")

    team = Team(3)
    for turn in (0, 1, 2):
        done: list[tuple[int, int]] = []
        with pytest.raises(ValueError, match=f"turn {turn}"):
            team.run(fails_at, 3, turn)
        assert sorted(done) == [(0, 1), (1, 2), (2, 3)]
    done = []
    team.run(fails_at, 3, 99)
    assert len(done) == 3


def test_an_interrupt_waits_for_the_others() -> None:
    class Interrupted:
        calls = 0

        def acquire(self) -> None:
            self.calls += 1
            if self.calls == 1:
                raise KeyboardInterrupt

    lock: Any = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        threads.await_end(threads.Desk(given=threading.Lock(), done=lock))
    assert lock.calls == 2


def helpers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == threads.NAME}


def test_threads_start_when_there_is_work_and_end_with_their_team() -> None:
    before = helpers()
    team = Team(3)
    assert helpers() == before
    team.run(lambda first, last: None, 3)
    started = helpers() - before
    assert len(started) == 2
    del team
    gc.collect()
    for thread in started:
        thread.join(10)
    assert not helpers() & started


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_forked_process_has_threads_of_its_own() -> None:
    team = Team(2)
    team.run(lambda first, last: None, 2)
    child = os.fork()
    if child == 0:  # never back into the tests
        taken: list[int] = []
        team.run(lambda first, last: taken.extend(range(first, last)), 2)
        os._exit(0 if sorted(taken) == [0, 1] else 1)
    assert os.waitpid(child, 0)[1] == 0
