"""Several threads: the result of one, to the last bit; nobody left behind; no launch for what is small."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.tvm import Tvm, TvmExecutable, ready, threads
from qcompiler.backends.tvm.build import assembled, handed, host, placed
from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.driver import MAIN, Started, counters, driven
from qcompiler.backends.tvm.kernels.gemv import STREAMS, Gemv, gemv
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.ready import Code
from qcompiler.backends.tvm.threads import Team, divided
from qcompiler.ir import Graph
from qcompiler.proof import quantized
from qcompiler.target import find_target
from tests.backends.tvm.sets import pytestmark
from tests.backends.tvm.test_lower import Network
from tests.backends.tvm.test_transformer import Blocks

__all__ = ["pytestmark"]
TARGET = find_target("cpu", "tvm")
ISA = Tvm(TARGET).isa


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


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions that are divided from now on."""
    found = []

    def counted(function: Any) -> Any:
        made = divided(function)
        found.extend([] if made is None else [made])
        return made

    monkeypatch.setattr(ready, "divided", counted)
    return found


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("made", "counts"),
    [(partial(convolutions, 3), (2, 7)), (partial(convolutions, 5), (3,)), (partial(transformer, 1), (2, 7))],
)
def test_any_number_of_threads_computes_the_same(made: Any, counts: Sequence[int], shared: list[Any]) -> None:
    graph, inputs = made()
    alone, *teams = (Tvm(TARGET).lower(graph, threads=n) for n in (1, *counts))
    assert isinstance(alone, TvmExecutable)
    wanted = [alone([x]) for x in inputs]
    assert not shared
    for together in teams:
        assert isinstance(together, TvmExecutable)
        shared.clear()
        for x, results in zip(inputs, wanted, strict=True):
            for one, other in zip(results, together([x]), strict=True):
                assert torch.equal(one, other)
        assert all(found.max_lsb <= found.allowed for found in together.verify([inputs[-1]]))
        assert len(shared) > 5


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


def counting(turns: int, name: str = "count") -> Any:
    """A function that adds 1 to 16 numbers per turn."""
    k = Builder(name)
    x = k.argument("x", "int32", 16 * turns)
    with k.loop(turns, shared=True) as i:
        k.store(x, i * 16, k.load(x, i * 16, 16) + splat(1, "int32", 16), 16)
    return k.function()


def test_what_is_small_stays_whole() -> None:
    assert divided(counting(100)) is None
    found = divided(counting(threads.WORTH_SHARING))
    assert found is not None and found[1] == threads.WORTH_SHARING
    assert Tvm().settings(convolutions(3)[0], threads=2)["threads"] == 2


def test_a_row_of_a_decoder_is_worth_sharing() -> None:
    """Its blocks are counted, though only memory says how many they are."""
    x, y = (Plane(images=1, height=1, width=1, channels=n, pitch=n) for n in (768, 2304))
    layer = Gemv(x=x, y=y, bits=4, block=128, zero=8)
    found = divided(gemv(layer, ISA, "gemv"))
    assert found is not None and found[1] == 2304 // ISA.lanes // STREAMS


def code(turns: Sequence[int], size: int, divide: bool = True) -> tuple[Code, NDArray[np.int32], Any]:
    """Functions that count, one after the other, as one for a team; and the table that they read."""
    numbers = placed(np.zeros(16 * max(turns), np.int32))
    functions, started = {}, []
    for i, each in enumerate(turns):
        whole = counting(each, f"count{i}")
        found = divided(whole) if divide else None
        functions[f"count{i}"] = whole if found is None else found[0]
        started.append(Started(function=f"count{i}", places=(2,), turns=None if found is None else found[1]))
    module = assembled(driven(functions, started, 3, size, ISA), host())
    made = Code(
        main=module[MAIN], functions={}, team=Team(size), places={"x": 2},
        meeting=placed(np.zeros(counters(size), np.int32)), workspace=placed(np.zeros(0, np.uint8)),
    )  # fmt: skip
    table = placed(np.array([made.meeting.ctypes.data, 0, numbers.ctypes.data], np.int64))
    return made, numbers, handed(table)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_every_turn_of_every_call_is_taken_once(size: int, divide: bool) -> None:
    made, numbers, table = code((10, 3, 10, 1, 10), size, divide)
    for runs in range(1, 6):
        made.run(table, 0, 5)
        assert (numbers[:16] == 5 * runs).all()
        assert (numbers[16:48] == 4 * runs).all() and (numbers[48:] == 3 * runs).all()
    made.run(table, 1, 2)
    assert (numbers[32:48] == 4 * runs + 1).all() and (numbers[48:] == 3 * runs).all()


@pytest.mark.usefixtures("eager")
def test_a_call_waits_for_all_parts_of_those_before() -> None:
    """Each turn adds what its left neighbour, of another thread, had before: a part too early adds less."""
    size, turns, calls = 4, 64, 80
    k = Builder("shift")
    x, y = k.argument("x", "int32", 16 * (turns + 1)), k.argument("y", "int32", 16 * (turns + 1))
    with k.loop(turns, shared=True) as i:
        k.store(y, (i + 1) * 16, k.load(x, i * 16, 16) + k.load(x, (i + 1) * 16, 16), 16)
    found = divided(k.function())
    assert found is not None
    order = [(2, 3), (3, 2)] * (calls // 2)
    started = [Started(function="shift", places=places, turns=turns) for places in order]
    module = assembled(driven({"shift": found[0]}, started, 4, size, ISA), host())
    meeting = placed(np.zeros(counters(size), np.int32))
    made = Code(
        main=module[MAIN], functions={}, team=Team(size), meeting=meeting, workspace=meeting, places={},
    )  # fmt: skip
    arrays = [placed(np.zeros(16 * (turns + 1), np.int32)) for _ in range(2)]
    arrays[0][:16] = arrays[1][:16] = 1
    made.run(
        handed(placed(np.array([each.ctypes.data for each in (meeting, meeting, *arrays)], np.int64))),
        0,
        calls,
    )
    wanted = np.zeros(turns + 1, np.int32)
    wanted[0] = 1
    for _ in range(calls):
        wanted[1:] = wanted[1:] + wanted[:-1]
    assert np.array_equal(arrays[0][::16], wanted)


def test_an_error_of_any_thread_is_raised_and_the_team_goes_on() -> None:
    def fails(thread: int) -> None:
        done.append(thread)
        if thread == failing:
            raise ValueError(f"thread {thread}")
        while failing >= 0 and not given_up:  # as one that waits for the others
            time.sleep(0.001)

    team = Team(3)
    for failing in (0, 1, 2, -1):
        done: list[int] = []
        given_up: list[bool] = []
        with pytest.raises(ValueError, match=f"thread {failing}") if failing >= 0 else nullcontext():
            team.run(fails, lambda: given_up.append(True))  # noqa: B023
        assert sorted(done) == [0, 1, 2]


@pytest.mark.usefixtures("eager")
def test_who_waits_for_one_that_never_comes_can_be_released() -> None:
    made, _, table = code((10, 10), 2)
    waiting = threading.Thread(target=made.main, args=(table, 0, 2, 1, 2))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    made.give_up()
    waiting.join(10)
    assert not waiting.is_alive()


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupt_waits_for_all_the_others(late: bool) -> None:
    """Whether it comes before the lock is taken, or behind."""

    class Interrupted:
        calls = 0

        def acquire(self, timeout: float) -> None:
            self.calls += 1
            desks[0].ended = late or self.calls > 1
            if self.calls == 1:
                raise KeyboardInterrupt

    class Slow:
        def acquire(self, timeout: float) -> None:
            desks[1].ended = True

    locks: list[Any] = [Interrupted(), Slow()]
    desks = [threads.Desk(given=threading.Lock(), done=lock, ended=False) for lock in locks]
    with pytest.raises(KeyboardInterrupt):
        threads.await_all(desks)
    assert [desk.ended for desk in desks] == [True, True]


def test_what_failed_once_is_not_raised_again() -> None:
    def fails(thread: int) -> None:
        raise ValueError(f"thread {thread}")

    team = Team(3)
    with pytest.raises(ValueError, match="thread 0"):
        team.run(fails, nothing)
    for _ in range(20):
        team.run(lambda thread: None, nothing)


def test_threads_that_do_not_start_are_told_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    team = Team(3)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="start new thread"):
                team.run(lambda thread: None, nothing)
    done: list[int] = []
    team.run(done.append, nothing)
    assert sorted(done) == [0, 1, 2]


def nothing() -> None:
    pass


def helpers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == threads.NAME}


def test_threads_start_when_there_is_work_and_end_with_their_team() -> None:
    before = helpers()
    team = Team(3)
    assert helpers() == before
    team.run(lambda thread: None, nothing)
    started = helpers() - before
    assert len(started) == 2
    del team
    gc.collect()
    for thread in started:
        thread.join(10)
    assert not helpers() & started


@pytest.mark.skipif(threads.current_core() is None, reason="the system does not tell where a thread runs")
def test_the_others_leave_the_core_of_their_caller() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) == 1:
        pytest.skip("there is one core for all")
    team = Team(3)
    team.run(lambda thread: None, nothing)
    for core in sorted(allowed)[:2]:
        team.leave_alone(core)
        found = [os.sched_getaffinity(thread.native_id or 0) for thread in team.threads]
        assert found == [allowed - {core}] * 2 and os.sched_getaffinity(0) == allowed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_forked_process_has_threads_of_its_own() -> None:
    team = Team(2)
    team.run(lambda thread: None, nothing)
    child = os.fork()
    if child == 0:  # never back into the tests
        taken: list[int] = []
        team.run(taken.append, nothing)
        os._exit(0 if sorted(taken) == [0, 1] else 1)
    assert os.waitpid(child, 0)[1] == 0
