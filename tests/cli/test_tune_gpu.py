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


def test_a_recipe_without_codes_has_nothing_to_tune(run: Run) -> None:
    result = run("tune zoo:mlp --target cuda --recipe fp8 --no-device --database rows.db")
    assert result.exit_code != 0
    assert "use --recipe int8-dynamic" in " ".join(result.stderr.split())


def test_rows_are_of_gpus(run: Run) -> None:
    result = run("tune zoo:mlp --rows 16 --database rows.db")
    assert result.exit_code != 0 and "add --target cuda" in " ".join(result.stderr.split())


def test_what_was_measured_is_shown_with_its_share_of_what_the_device_could(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"linear": "int8 64x32", "M": 16, "contender": "float", "us": 1.5, "ratio": 1.0,
           "of_roofline": None, "refused": 2}  # fmt: skip
    other = {**one, "M": 512, "contender": "BM 128", "ratio": 1.4, "of_roofline": 0.62}
    linear = {"linear": "int8 64x32 bf16", "decisions": "float, from 200 int8_linear"}
    told = {"device": "NVIDIA H100", "left": 1, "chosen": [one, other], "linears": [linear]}
    monkeypatch.setattr("qcompiler.cli.tune_gpu.measured", lambda *given: told)
    result = run(COMMAND)
    assert result.exit_code == 0, result.stderr
    assert "1.40x" in result.stdout and "62%" in result.stdout
    assert "float, from 200 int8_linear" in result.stdout and "Measured on NVIDIA H100" in result.stdout
    assert "1 problems were not reached in time" in result.stderr
