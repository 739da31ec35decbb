"""The verbs on small models: what they print, what they write, and how they end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner, Result

import qcompiler as qc
from qcompiler import api
from qcompiler.backends.tvm.library.run import Model
from qcompiler.cli import app
from qcompiler.cli.doctor import Finding
from tests.backends.tvm.sets import RUNNABLE

Run = Callable[[str], Result]
PLANNED = re.compile(r"(\d) of \1 planned layers run in integers")  # of 5; the speed guard may take some back
SIGNED = "zoo:residual --override *:activations=int8"  # formats that ONNX Runtime silently runs in float


@pytest.fixture(scope="module")
def saved(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One compiled model, and what compiling it printed."""
    folder = tmp_path_factory.mktemp("saved") / "residual.qc"
    command = ["compile", f"{zoo / 'zoo.py'}:residual", "-o", str(folder), "--threads", "1"]
    return folder, CliRunner().invoke(app, command)


# ---------------------------------------------------------------- compile and report


def test_compile_reports_and_saves(saved: tuple[Path, Result]) -> None:
    folder, result = saved
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert PLANNED.search(result.stdout)
    assert result.stdout.splitlines()[-1] == f"Saved in {folder}"
    assert all(line == line.rstrip() for line in result.stdout.splitlines())
    assert qc.load(folder, threads=1)(torch.zeros(3, 3, 8, 8)).shape == (3, 4)


def test_an_artifact_can_be_read_by_others(saved: tuple[Path, Result]) -> None:
    assert {path.stat().st_mode & 0o044 for path in saved[0].iterdir()} == {0o044}


def test_report_repeats_it_and_writes_page_and_data(saved: tuple[Path, Result], run: Run) -> None:
    result = run(f"report {saved[0]} -o page.html --json data.json")
    assert result.exit_code == 0
    assert PLANNED.search(result.stdout)
    assert result.stdout.splitlines()[-1] == "Saved in page.html"
    assert Path("page.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads(Path("data.json").read_text())["coverage"]["holds"] is True


def test_report_opens_the_page(saved: tuple[Path, Result], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    assert run(f"report {saved[0]} --open").exit_code == 0
    assert opened == [str(saved[0] / "report.html")]


def test_json_on_stdout_stands_alone(saved: tuple[Path, Result], run: Run) -> None:
    result = run(f"report {saved[0]} --json -")
    assert json.loads(result.stdout)["manifest"]["backend"] == "ort"
    assert result.stderr == ""


def test_compile_on_the_reference_with_metric_and_json(run: Run) -> None:
    result = run("compile zoo:mlp --backend reference --json - --seed 3")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout, parse_constant=pytest.fail)
    assert data["accuracy"]["metric"]["name"] == "agreement"
    assert data["accuracy"]["weights_are_random"] is False
    assert data["manifest"]["seed"] == 3


def test_quiet_is_quiet(run: Run) -> None:
    result = run("compile zoo:mlp --backend reference --quiet -o model.qc --json data.json")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert Path("model.qc/manifest.json").is_file()
    assert Path("data.json").is_file()


def test_compile_takes_a_program_and_calibration(run: Run, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4)).eval()
    torch.export.save(torch.export.export(model, (torch.randn(2, 8),)), tmp_path / "linear.pt2")
    np.savez(tmp_path / "rows.npz", input=np.random.default_rng(0).standard_normal((6, 8), dtype=np.float32))
    result = run("compile linear.pt2 --calibration rows.npz --backend reference")
    assert result.exit_code == 0, result.stderr
    assert "1 of 1 planned layers run in integers" in result.stdout


def test_a_silent_float_is_told(run: Run) -> None:
    result = run(f"compile {SIGNED} --threads 1 --json data.json")
    assert result.exit_code == 0, result.stderr
    assert "Look at" in result.stdout
    assert "was planned in int8 and runs in float" in result.stdout
    surprises = json.loads(Path("data.json").read_text())["coverage"]["surprises"]
    assert any("read twice" in row["reason"] for row in surprises)


def test_strict_refuses_a_silent_float_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    result = run(f"compile {SIGNED} --threads 1 --strict -o model.qc --json data.json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "stem/conv2d" in result.stderr
    assert "because" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["distance", "nodes"])
def test_a_broken_guarantee_is_an_error_and_saves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    compiled = api.compile(
        torch.nn.Linear(8, 4).eval(), torch.randn(2, 8), backend="reference", progress=False
    )
    far: Mapping[str, Any] = {
        "distance": {"max_lsb": 9.0, "bound_lsb": 1.0, "within": False},
        "nodes": {
            "within": False,
            "worst": [
                {"label": "fc/linear", "max_lsb": 3.0, "allowed": 0, "changed": 0.5, "kernel": "QGemm"}
            ],
        },
    }
    accuracy = {**compiled.data["accuracy"], broken: {**compiled.data["accuracy"][broken], **far[broken]}}
    spoiled = replace(compiled, data={**compiled.data, "accuracy": accuracy})
    monkeypatch.setattr(api, "compile", lambda *_, **__: spoiled)
    result = run("compile zoo:itself -o model.qc")
    assert result.exit_code == 1
    assert {"distance": "9 LSB", "nodes": "fc/linear"}[broken] in result.stderr
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- export


@pytest.mark.parametrize("opset", [18, 23])
def test_export_writes_a_model_that_runs_anywhere(run: Run, opset: int) -> None:
    result = run(f"export zoo:mlp -o mlp.onnx --opset {opset}")
    assert result.exit_code == 0, result.stderr
    assert onnx.load("mlp.onnx").opset_import[0].version == opset
    assert "2 of 2 planned layers run as planned (2 linear)" in result.stdout
    assert "mlp.onnx" in result.stdout
    session = onnxruntime.InferenceSession("mlp.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (found,) = session.run(None, {given.name: np.zeros((5, 32), dtype=np.float32)})
    assert found.shape == (5, 4)


@pytest.mark.parametrize("name", ["model.txt", "model"])
def test_export_refuses_a_name_that_is_not_for_onnx(run: Run, tmp_path: Path, name: str) -> None:
    result = run(f"export zoo:mlp -o {name}")
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert f"'{name}' is no name for an ONNX file" in result.stderr
    assert "write 'model.onnx'" in result.stderr


def test_export_warns_of_a_silent_float_and_strict_refuses(run: Run, tmp_path: Path) -> None:
    result = run(f"export {SIGNED} -o model.onnx")
    assert result.exit_code == 0
    assert "warning: stem/conv2d" in result.stderr
    (tmp_path / "model.onnx").unlink()
    result = run(f"export {SIGNED} -o model.onnx --strict")
    assert result.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not RUNNABLE, reason="this CPU has no instruction set that kernels exist for")
def test_export_writes_a_library(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the speed guard, which could give a model this small back to float."""
    monkeypatch.setattr(api, "raced", lambda *_, **__: None)
    result = run("export zoo:residual --format library --batch 3 -o library")
    assert result.exit_code == 0, result.stderr
    assert "equal to the compiled model to the last bit; saved in library (constants.bin" in result.stdout
    (found,) = Model(tmp_path / "library")(np.zeros((3, 3, 8, 8), np.float32))
    assert found.shape == (3, 4)
    result = run("export zoo:residual --format library --opset 21 -o other")
    assert (result.exit_code, [path.name for path in tmp_path.iterdir()]) == (1, ["library"])
    assert "--opset and --engine speak of ONNX; leave them out for a library" in result.stderr
    result = run("export zoo:residual --isa avx2 -o model.onnx")
    assert (result.exit_code, [path.name for path in tmp_path.iterdir()]) == (1, ["library"])
    assert "--isa speaks of a library; add --format library" in result.stderr


# ---------------------------------------------------------------- explain


def test_explain_shows_layers_and_tensors_with_reasons(run: Run) -> None:
    result = run("explain zoo:residual")
    assert result.exit_code == 0, result.stderr
    for words in ("Layers", "Tensors", "QLinearConv", "per channel", "compute-bound"):
        assert words in result.stdout


def test_explain_measures_and_lowers_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it must not be called")

    monkeypatch.setattr("qcompiler.backends.ort.Ort.lower", fail)
    monkeypatch.setattr("qcompiler.api.interleave", fail, raising=False)
    monkeypatch.setattr("qcompiler.proof.quantized", fail)
    assert run("explain zoo:residual").exit_code == 0


@pytest.mark.parametrize(("pattern", "layers"), [("stem", 1), ("*conv2d*", 2), ("nothing", 0)])
def test_explain_filters(run: Run, pattern: str, layers: int) -> None:
    result = run(f"explain zoo:residual {pattern} --json -")
    assert result.exit_code == (0 if layers else 1)
    if layers:
        assert len(json.loads(result.stdout)["layers"]) == layers


def test_explain_lists_refusals_with_rule_node_and_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "qcompiler.passes.decide.Judge.score", lambda self, decision: 0.0
    )  # nothing is better
    refused = json.loads(run("explain zoo:itself --json -").stdout)["refused"]
    assert [row["rule"] for row in refused] == ["correct-bias"]
    assert all(set(row) == {"rule", "node", "reason"} and all(row.values()) for row in refused)


# ---------------------------------------------------------------- bench


def test_bench_compares_recipes_with_float(run: Run) -> None:
    result = run("bench zoo:mlp -r int8 -r int8-dynamic --batch 3 --threads 1 --json data.json")
    assert result.exit_code == 0, result.stderr
    assert "batch 3, 1 threads" in result.stdout
    data = json.loads(Path("data.json").read_text())
    assert [row["name"] for row in data["results"]] == ["float", "int8", "int8-dynamic"]
    assert all(row["ratio_min"] <= row["ratio"] <= row["ratio_max"] for row in data["results"])
    assert data["results"][0]["ratio"] == 1
    assert data["batch"] == 3


# ---------------------------------------------------------------- doctor


def test_doctor_finds_this_installation_sound(run: Run) -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for name in ("python", "torch", "onnxruntime", "cpu", "vnni", "providers", "kernels"):
        assert any(line.startswith(name) for line in result.stdout.splitlines())


@pytest.mark.parametrize("state", ["missing", "old", "broken"])
def test_doctor_fails_on_what_is_needed(run: Run, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    found = [Finding(what="onnx", found="0.1", state=state)]
    monkeypatch.setattr("qcompiler.cli.doctor.packages", lambda: found)
    result = run("doctor")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: onnx ")


def test_doctor_does_without_what_is_optional(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Finding(what="transformers", found="–", state="optional")]
    monkeypatch.setattr("qcompiler.cli.doctor.packages", lambda: found)
    assert run("doctor").exit_code == 0
