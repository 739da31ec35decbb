"""Rounds over processes: who runs when, what is compared with what, and what becomes of a crash."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.contest import contest
from benchmarks.process import Lost, sentence


class Runner:
    """Answers with times prepared for it, and notes its turns; a time of None is a crash."""

    def __init__(self, name: str, times: list[float | None], turns: list[str]) -> None:
        self.name, self.times, self.turns = name, iter(times), turns

    def send(self, message: Any) -> None:
        self.turns.append(self.name)

    def receive(self, *, patience: float) -> Any:
        found = next(self.times)
        if found is None:
            raise Lost("the process ended with code -11")
        return found


def test_rounds_rotate_and_ratios_are_of_one_round() -> None:
    """The machine gets three times slower in the last round; the ratios do not see it."""
    turns: list[str] = []
    workers = {"a": Runner("a", [4.0, 4.0, 12.0], turns), "b": Runner("b", [2.0, 1.0, 6.0], turns)}
    timing, lost = contest(workers, rounds=3, slice=0.1)
    assert "".join(turns) == "abbaab"
    assert timing.ratios("a", "b") == [2.0, 4.0, 2.0]
    assert timing.ratio("a", "b") == 2.0
    assert lost == {}


def test_who_crashes_leaves_with_a_reason_and_the_others_go_on() -> None:
    turns: list[str] = []
    workers = {"a": Runner("a", [1.0] * 3, turns), "b": Runner("b", [1.0, None], turns)}
    timing, lost = contest(workers, rounds=3, slice=0.1)
    assert timing.seconds == {"a": (1.0, 1.0, 1.0)}
    assert lost == {"b": "the process ended with code -11"}
    assert "".join(turns) == "abbaa"


def test_a_contest_of_nobody_is_over() -> None:
    """As when no contender could be opened."""
    timing, lost = contest({}, rounds=3, slice=0.1)
    assert not timing.seconds and not lost


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no kernel\n  at node 7"), "ValueError: no kernel"),
        (KeyError(), "KeyError"),
        (RuntimeError("x" * 500), "RuntimeError: " + "x" * 186),
    ],
)
def test_a_reason_is_one_line(error: Exception, said: str) -> None:
    assert sentence(error) == said
