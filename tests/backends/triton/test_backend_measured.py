"""Decisions of the backend by what was measured on the GPU that is here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from qcompiler.api import explain
from qcompiler.backends import find_backend
from qcompiler.backends.triton.decisions import Decisions
from qcompiler.backends.triton.engine import backend
from qcompiler.backends.triton.engine.executable import TritonExecutable
from qcompiler.backends.triton.engine.layers import layers_of
from qcompiler.backends.triton.engine.readings import readings_of
from qcompiler.backends.triton.ops.schedule import DATABASE, Chosen
from qcompiler.backends.triton.tuning.asked import problems_of
from qcompiler.backends.triton.tuning.device import DEVICES
from qcompiler.backends.triton.tuning.families import FLOAT, space, written
from qcompiler.backends.triton.tuning.schedules import schedules_of
from qcompiler.backends.triton.tuning.tuner import versions
from qcompiler.proof import quantized
from qcompiler.target import find_target
from qcompiler.tune.database import Row

H100 = DEVICES[0]


def test_rows_of_this_gpu_decide_and_ops_run_as_the_named_database_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, x = nn.Linear(64, 32).bfloat16().eval(), torch.randn(16, 64).bfloat16()
    graph = quantized(explain(model, x, recipe="int8-dynamic", target="cuda", progress=False))
    layers = layers_of(graph, find_target("cuda"))
    (layer,) = layers.found
    assert backend.measured(layers) == {}, "there is no GPU"

    named, seen = find_backend("triton", find_target("cuda"), database=tmp_path / "mine.db"), list[object]()
    executable = named.lower(graph)
    assert isinstance(executable, TritonExecutable)

    def told(node: object, call: Callable[[], object]) -> object:
        seen.append(DATABASE.get())
        return call()

    executable.run([x], around=told)
    assert {*seen} == {tmp_path / "mine.db"} and DATABASE.get() is None

    rows = [
        Row(
            workload=problem.text, configuration=name, isa=H100.core.isa, processor=H100.core.processor,
            seconds=seconds, spread=0.0, rounds=3, **versions(problem, name),
        )
        for problem, seconds_of_ours in zip(
            problems_of(layer.problem, readings_of(layers.found), 16), (1e-6, 5e-7), strict=True
        )
        for name, seconds in ((written(space(problem, 90)[0]), seconds_of_ours), (FLOAT, 2e-6))
    ]  # fmt: skip
    known = Chosen(schedules=schedules_of(rows, H100.core, H100.capability))
    monkeypatch.setattr(backend, "of_device", lambda device, database: known)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert backend.measured(layers) == {
        layer.problem: Decisions(borders=(), names=("int8_linear",), measured=True)
    }
