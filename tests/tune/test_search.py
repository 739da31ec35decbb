"""The search over schedules: which candidates are timed, how often, and which one is taken."""

from __future__ import annotations

from collections import Counter

import pytest

from qcompiler.tune.search import LEAST_ROUNDS, Measured, race


def test_the_fastest_wins_by_its_median_and_slow_ones_leave_early() -> None:
    """b has the least time of all and the worst median of the close ones; d is out after three rounds."""
    times = {"a": [3.0, 3.0], "b": [1.0, 3.3, 3.4], "c": [2.9, 3.1, 2.8], "d": [9.0]}
    calls: Counter[str] = Counter()

    def sample(name: str) -> float:
        calls[name] += 1
        return times[name][calls[name] % len(times[name])]

    found = race("abcd", sample, rounds=9)
    assert [measured.candidate for measured in found] == ["c", "a", "b", "d"]
    assert calls == {"a": 9, "b": 9, "c": 9, "d": LEAST_ROUNDS}
    assert found[0].median == 2.9 and found[0].spread == pytest.approx((3.1 - 2.8) / 2.9)


def test_rounds_rotate_and_every_round_is_told() -> None:
    order: list[int] = []
    told: list[Measured[int]] = []

    def sample(i: int) -> float:
        order.append(i)
        return 1.0 + i / 100

    race(range(3), sample, rounds=3, tick=told.append)
    assert order == [0, 1, 2, 1, 2, 0, 2, 0, 1]
    assert [best.candidate for best in told] == [0, 0, 0]


def test_the_budget_of_time_leaves_the_first_rounds() -> None:
    now = iter(range(100))
    found = race("ab", lambda name: 1.0, rounds=50, until=1.5, clock=lambda: float(next(now)))
    assert [len(measured.seconds) for measured in found] == [LEAST_ROUNDS + 2] * 2
    assert Measured(candidate="a", seconds=(1.0,)).spread == 0.0
