"""`qcompiler tune --target cuda` where there is no GPU: what would be measured, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

Run = Callable[[str], Result]
COMMAND = "tune zoo:mlp --target cuda --recipe int8-dynamic --database rows.db"


def test_what_would_be_measured_is_ordered_on_paper(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # compiling has tests of its own
    result = run(f"{COMMAND} --no-device --rows 16 --rows 512 --json told.json")
    assert result.exit_code == 0, result.stderr
    assert "Predicted for NVIDIA H100, and measured nowhere" in result.stdout
    assert "Triton is not installed, so nothing was compiled" in result.stderr
    told = json.loads(Path("told.json").read_text())
    assert {one["problem"].split(", ")[2] for one in told["candidates"]} == {"M 16", "M 512"}
    assert all(one["us"] > 0 and one["fault"] is None for one in told["candidates"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_nothing_is_measured(run: Run) -> None:
    result = run(COMMAND)
    assert result.exit_code != 0
    assert "there is no GPU here to measure on; use --no-device" in " ".join(result.stderr.split())


def test_a_recipe_without_codes_of_rows_has_nothing_to_tune(run: Run) -> None:
    result = run("tune zoo:mlp --target cuda --no-device --database rows.db")
    assert result.exit_code != 0
    assert "use --recipe int8-dynamic" in " ".join(result.stderr.split())


def test_rows_are_of_gpus(run: Run) -> None:
    result = run("tune zoo:mlp --rows 16 --database rows.db")
    assert result.exit_code != 0 and "add --target cuda" in " ".join(result.stderr.split())
