"""Everybody in a field gets a cell, whatever becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import field
from benchmarks.case import Case
from benchmarks.cells import Cell
from benchmarks.contenders import BASELINE
from benchmarks.process import Lost
from benchmarks.worker import Prepared, Ready
from qcompiler.progress import silent

SETTINGS = field.Settings(rounds=2, slice=0.1, cores=(0,), work=Path())


class Process:
    """Is ready, then needs the same time in every round; a time of None is a crash."""

    def __init__(self, seconds: float | None) -> None:
        self.answers: list[Any] = [Ready(seconds=1.0, sqnr_db=30.0, agreement=1.0, memory=1.0)]
        self.answers += [seconds] * SETTINGS.rounds

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *raised: object) -> None:
        return None

    def send(self, message: Any) -> None:
        return None

    def receive(self, *, patience: float) -> Any:
        answer = self.answers.pop(0)
        if answer is None:
            raise Lost("the process ended with code -9")
        return answer


def measured(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float | None]) -> dict[str, Cell]:
    """The field on BERT, where some are absent, cannot be prepared or opened, or crash."""

    def prepare(name: str, *rest: object) -> Prepared:
        if name == "inductor-pt2e":
            raise field.Absent("it needs c++")
        if name == "onnxruntime-static":
            raise Lost("ValueError: no kernel")
        return Prepared(seconds=1.0, size=None)

    def opened(name: str, *rest: object) -> Process:
        if name == "openvino":
            raise Lost("no memory")
        return Process(seconds[name])

    monkeypatch.setattr(field, "kept_case", lambda *_, **__: Case(kind="transformer", folder=Path()))
    monkeypatch.setattr(field, "prepare", prepare)
    monkeypatch.setattr(field, "opened", opened)
    names = [*seconds, "inductor-pt2e", "onnxruntime-static", "openvino", "onnxruntime-nbits8"]
    return {cell.contender: cell for cell in field.measure("bert_base", names, SETTINGS, silent)}


def test_who_does_not_run_is_a_cell_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = measured(monkeypatch, {BASELINE: 0.4, "ours-int8": 0.1, "openvino-int8": None})
    assert {name: (cell.status, cell.reason) for name, cell in cells.items()} == {
        BASELINE: ("ok", ""),
        "ours-int8": ("ok", ""),
        "openvino-int8": ("failed", "the process ended with code -9"),
        "inductor-pt2e": ("not installed", "it needs c++"),
        "onnxruntime-static": ("failed", "ValueError: no kernel"),
        "openvino": ("failed", "no memory"),
    }  # the weight-only contender does not take BERT
    assert cells["ours-int8"].speed == pytest.approx(4.0) and cells["ours-int8"].best


def test_without_the_baseline_there_is_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = measured(monkeypatch, {BASELINE: None, "ours-int8": 0.1})
    assert cells["ours-int8"].status == "failed" and "measured against it" in cells["ours-int8"].reason
