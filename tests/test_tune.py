"""Costs: contenders are compared fairly, and the roofline is arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qcompiler.ir import trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.rewrite import run
from qcompiler.tune.measure import SLICE, WARM_UP, Timing, interleave
from qcompiler.tune.roofline import Machine, Work, measure_machine, roofline, work_of


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run


def test_every_round_times_every_contender_in_rotating_order() -> None:
    clock, order = Clock(), []

    def contender(name: str) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            clock.now += 1.0

        return run

    ticks = []
    timing = interleave({n: contender(n) for n in "abc"}, rounds=4, clock=clock, tick=lambda: ticks.append(1))
    warm = 3 * (WARM_UP + 1)  # and once to see how long it takes
    assert "".join(order[warm:]) == "abcbcacababc"
    assert {name: len(found) for name, found in timing.seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert len(ticks) == 4


def test_seconds_are_per_call_and_short_runs_are_repeated() -> None:
    clock, calls = Clock(), 0

    def short() -> None:
        nonlocal calls
        calls += 1
        clock.now += SLICE / 50

    timing = interleave({"short": short, "long": clock.work(1.0)}, rounds=3, clock=clock)
    assert timing.seconds["short"] == pytest.approx([SLICE / 50] * 3)
    assert timing.seconds["long"] == pytest.approx([1.0] * 3)
    assert calls == WARM_UP + 1 + 3 * 50
    assert timing.ratio("long", "short") == pytest.approx(50 / SLICE)


def test_a_ratio_is_the_median_of_rounds_and_not_the_ratio_of_medians() -> None:
    timing = Timing(seconds={"float": (4.0, 40.0, 6.0), "int8": (2.0, 10.0, 6.0)})
    assert timing.ratios("float", "int8") == [2, 4, 1]
    assert timing.ratio("float", "int8") == 2  # of medians it would be 1
    assert (timing.median("float"), timing.median("int8")) == (6, 6)


MACHINE = Machine(int8_ops=1e12, float_ops=2.5e11, bytes_per_second=1e10)


def works(model: nn.Module, *shape: int, batch: int) -> list[Work | None]:
    graph = run(CANONICAL, trace(model.eval(), torch.randn(shape)))
    return [
        work_of(node, batch) for node in graph.nodes if node.op == "call_function" and "sym" not in node.name
    ]


def test_the_work_of_known_layers() -> None:
    conv, relu = works(
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU()), 2, 4, 10, 10, batch=3
    )
    assert conv == Work(macs=3 * 8 * 100 * 2 * 9, elements=3 * (4 + 8) * 100, weights=8 * 2 * 9)
    assert relu == Work(macs=0, elements=2 * 3 * 8 * 100, weights=0)
    (linear,) = works(nn.Linear(64, 32), 2, 5, 64, batch=7)
    assert linear == Work(macs=7 * 5 * 64 * 32, elements=7 * 5 * (64 + 32), weights=64 * 32)


def test_the_roofline_is_the_larger_of_arithmetic_and_memory() -> None:
    busy = Work(macs=10**9, elements=1000, weights=1000)
    assert roofline(busy, MACHINE, integer=True) == pytest.approx(2e9 / 1e12)
    assert roofline(busy, MACHINE, integer=False) == pytest.approx(2e9 / 2.5e11)
    streaming = Work(macs=0, elements=10**6, weights=10**6)
    assert roofline(streaming, MACHINE, integer=True) == pytest.approx(2e6 / 1e10)
    assert roofline(streaming, MACHINE, integer=False) == pytest.approx(8e6 / 1e10)


def test_a_machine_is_measured_with_positive_rates() -> None:
    found = measure_machine(size=32, repeats=1)
    assert min(found.int8_ops, found.float_ops, found.bytes_per_second) > 0
