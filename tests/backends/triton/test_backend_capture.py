"""What is captured, replayed and given up, with a capturer that needs no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from qcompiler.backends.triton.engine.capture import AGAIN, MOST, SEEN, Captures, Replay, Run


class Recorder:
    """Captures by remembering what it was asked for; a replay says which capture it is."""

    def __init__(self, failing: bool = False) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.failing = failing
        self.freed: list[int] = []

    def __call__(self, run: Run, inputs: Sequence[Any]) -> Replay:
        self.asked.append(tuple(inputs[0].shape))
        if self.failing:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return Recorded(run, len(self.asked), self.freed)


@dataclass
class Recorded:
    run: Run
    number: int
    freed: list[int]

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        return [*self.run(inputs), self.number]

    def free(self) -> None:
        self.freed.append(self.number)


def doubled(inputs: Sequence[Any]) -> list[Any]:
    return [2 * inputs[0]]


def test_each_set_of_shapes_is_captured_once() -> None:
    recorder = Recorder()
    captures = Captures(capture=recorder)
    rows = (3, 5, 3, 3, 5)
    results = [captures(doubled, [torch.full((n, 2), float(n))]) for n in rows]
    assert recorder.asked == [(3, 2), (5, 2)]
    assert [number for _, number in results] == [1, 2, 1, 1, 2]
    assert all((y == 2 * n).all() for (y, _), n in zip(results, rows, strict=True))


def test_types_and_plain_numbers_are_part_of_a_capture() -> None:
    recorder = Recorder()
    captures = Captures(capture=recorder)
    x = torch.ones(2)
    for given in ([x, 1], [x, 2], [x.half(), 1], [x, 1], [x, 1.0]):
        captures(doubled, given)
    assert len(recorder.asked) == len(captures.kept) == 4


def test_what_cannot_be_captured_runs_op_by_op_and_says_why_once() -> None:
    recorder = Recorder(failing=True)
    captures = Captures(capture=recorder)
    with pytest.warns(UserWarning, match="stream is capturing") as said:
        for _ in range(3):
            assert torch.equal(captures(doubled, [torch.ones(2)])[0], torch.full((2,), 2.0))
        assert recorder.asked == [(2,)]
        captures(doubled, [torch.ones(3)])
    assert [warning.filename for warning in said] == [__file__]
    (why,) = captures.refused
    assert why.endswith("runs op by op: operation not permitted when stream is capturing")


def test_captures_are_bounded_and_that_is_said_once() -> None:
    recorder = Recorder()
    captures = Captures(capture=recorder)
    with pytest.warns(UserWarning, match=f"more than {MOST} sets of shapes were called") as said:
        for n in range(MOST + 300):
            (y, *_) = captures(doubled, [torch.ones(n)])
            assert y.shape == (n,)
    assert len(recorder.asked) == len(captures.kept) == MOST and recorder.freed == []
    assert len(said) == len(captures.refused) == 1 and len(captures.waiting) <= SEEN


@pytest.mark.filterwarnings("ignore:more than")
def test_what_is_called_takes_the_place_of_what_is_not() -> None:
    """Of the least recently used, whose memory is given back; the others stay."""
    recorder = Recorder()
    captures = Captures(capture=recorder)
    for n in (*range(1, MOST + 1), 1):  # the second is the one that was used least recently
        captures(doubled, [torch.ones(n)])
    for turn in range(AGAIN):
        assert recorder.freed == []
        found = captures(doubled, [torch.ones(99)])
        assert len(found) == (1 if turn < AGAIN - 1 else 2), "a replay says its number"
    assert recorder.freed == [2] and len(captures.kept) == MOST == len(captures.used)
    assert captures(doubled, [torch.ones(1)])[1] == 1 and recorder.asked[-1] == (99,)


@pytest.mark.filterwarnings("ignore:more than")
def test_shapes_that_take_turns_do_not_chase_each_other_out() -> None:
    recorder = Recorder()
    captures = Captures(capture=recorder)
    for _ in range(10):
        for n in range(MOST + 2):
            captures(doubled, [torch.ones(n)])
    assert len(recorder.asked) == MOST and recorder.freed == []
