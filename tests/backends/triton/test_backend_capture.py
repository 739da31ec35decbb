"""What is captured, replayed and given up, with a capturer that needs no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qcompiler.backends.triton.engine.capture import MOST, Captures, Replay, Run


class Recorder:
    """Captures by remembering what it was asked for; a replay says which capture it is."""

    def __init__(self, failing: bool = False) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.failing = failing

    def __call__(self, run: Run, inputs: Sequence[Any]) -> Replay:
        self.asked.append(tuple(inputs[0].shape))
        if self.failing:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        number = len(self.asked)
        return lambda given: [*run(given), number]


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
    for _ in range(3):
        assert torch.equal(captures(doubled, [torch.ones(2)])[0], torch.full((2,), 2.0))
    assert recorder.asked == [(2,)]
    captures(doubled, [torch.ones(3)])
    (why,) = captures.refused
    assert why.endswith("one graph: operation not permitted when stream is capturing")


def test_captures_are_bounded() -> None:
    recorder = Recorder()
    captures = Captures(capture=recorder)
    for n in range(MOST + 3):
        captures(doubled, [torch.ones(n)])
    assert len(recorder.asked) == MOST
    assert [why.split(",")[0] for why in captures.refused] == [f"more than {MOST} sets of shapes were called"]
