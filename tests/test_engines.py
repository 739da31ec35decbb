"""Which engine ships: the fastest of those as exact; a small model is compiled once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler import api, engines
from qcompiler.engines import Entry, fastest
from qcompiler.errors import TargetError
from qcompiler.tune.measure import Timing
from tests.backends.tvm.sets import RUNNABLE


def entry(name: str, sqnr: float) -> Entry:
    return Entry(backend=name, executable=lambda inputs: [], inputs=(), sqnr_db=sqnr)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "sqnr", "kept"),
    [
        ((2.0, 1.0), (30.0, 29.5), "tvm"),
        ((2.0, 1.0), (30.0, 28.5), "ort"),  # faster, but not as exact
        ((1.0, 2.0), (28.0, 30.0), "tvm"),  # slower, but the other is not as exact
        ((1.0, 1.0), (30.0, 30.0), "ort"),  # not beaten
    ],
)
def test_the_fastest_of_those_as_exact(
    monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float], sqnr: Sequence[float], kept: str
) -> None:
    names = ("ort", "tvm")
    timing = Timing(seconds={name: (time, time) for name, time in zip(names, seconds, strict=True)})
    monkeypatch.setattr(engines, "interleave", lambda *_, **__: timing)
    outcome = fastest([entry(*each) for each in zip(names, sqnr, strict=True)], {"other": "it is not here"})
    assert names[outcome.best] == kept
    assert [row["backend"] for row in outcome.rows if row["kept"]] == [kept]
    assert outcome.rows[-1] == {"backend": "other", "kept": False, "why": "it is not here"}


class Wide(nn.Module):
    """More than WORTH_TRYING multiply-accumulates in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x))).mean((2, 3))
        return y


def compiled(**options: Any) -> Any:
    torch.manual_seed(0)
    x = torch.randn(1, 16, 48, 48)
    return qc.compile(
        Wide().eval(), x, calibration=(x for _ in range(2)), threads=1, progress=False, **options
    )


@pytest.mark.skipif(not RUNNABLE, reason="there is one engine only")
def test_a_large_model_is_compiled_for_every_engine() -> None:
    made = compiled()
    rows = made.to_dict()["engines"]
    assert [row["backend"] for row in rows] == ["ort", "tvm"]
    (kept,) = [row["backend"] for row in rows if row["kept"]]
    assert made.backend.name == kept and f"{kept}: " in str(made.report())


def test_an_engine_that_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise TargetError("no such instructions here")

    monkeypatch.setattr("qcompiler.backends.tvm.Tvm.__init__", refuse)
    made = compiled()
    assert made.backend.name == "ort"
    assert {"backend": "tvm", "kept": False, "why": "no such instructions here"} in made.to_dict()["engines"]


def test_a_target_of_one_engine_is_compared_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a GPU's has no time where there is none."""
    monkeypatch.setattr(api, "is_worth_trying", lambda *_: True)
    made = qc.compile(
        nn.Linear(64, 64).bfloat16().eval(), torch.randn(2, 64).bfloat16(), recipe="int8-dynamic",
        target="cuda", progress=False,
    )  # fmt: skip
    assert "engines" not in made.to_dict()


def test_one_engine_is_asked_for_or_the_model_is_small() -> None:
    assert "engines" not in compiled(backend="ort").to_dict()
    small = qc.compile(nn.Linear(8, 8).eval(), torch.randn(2, 8), threads=1, progress=False)
    assert "engines" not in small.to_dict()
