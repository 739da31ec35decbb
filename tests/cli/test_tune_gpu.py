"""`qcompiler tune --target cuda` where there is no GPU: what would be measured, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.decisions import Linear
from qcompiler.backends.triton.engine.readings import Reading
from qcompiler.backends.triton.tuning import bench, compiling, contest, device
from qcompiler.backends.triton.tuning.compiling import Verdict
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.tune.database import read_rows
from tests.backends.triton.tuning.test_tuner import Planned

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


def test_of_a_calibrated_model_what_hands_codes_on_is_measured_too(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the passes by known scales, and what runs where products hand nothing on."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run(f"{COMMAND.replace('int8-dynamic', 'int8')} --no-device --rows 64 --json told.json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(Path("told.json").read_text())
    assert [*dict.fromkeys(one["problem"] for one in told["candidates"])] == [
        "int8_linear, int8, M 64, N 16, K 32, fp32",
        "int8_linear, int8, M 64, N 16, K 32, bf16, heavy",
        "quantize_by_scale, int8, M 64, K 32, fp32",
        "int8_linear, int8, M 64, N 4, K 16, fp32",
        "quantize_by_scale, int8, M 64, K 16, fp32",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_nothing_is_measured(run: Run) -> None:
    result = run(COMMAND)
    assert result.exit_code != 0
    assert "there is no GPU here to measure on; use --no-device" in " ".join(result.stderr.split())


def test_a_recipe_without_codes_has_nothing_to_tune(run: Run) -> None:
    result = run("tune zoo:mlp --target cuda --recipe fp8 --no-device --database rows.db")
    assert result.exit_code != 0
    assert "use --recipe int8-dynamic" in " ".join(result.stderr.split())


def test_problems_are_named_as_the_warning_names_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = (
        "tune --target cuda --no-device --database rows.db --json - --problem "
        "'quantize_both, int8 drawn, M 64, K 128, bf16'"
    )
    for rows, wanted in (("", {"M 64"}), (" --rows 16 --rows 32", {"M 16", "M 32"})):
        result = run(command + rows)
        assert result.exit_code == 0, result.stderr
        told = json.loads(result.stdout)
        assert {one["problem"].split(", ")[2] for one in told["candidates"]} == wanted


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Planned], None]:
    """A device that is not here: everything but its times and its compiler is as it runs.

    The last candidate of each problem does not compile. Called with the bench of all problems.
    """

    def judged(problem: Problem, candidates: Sequence[Configuration], *_: object) -> list[Verdict]:
        last = len(candidates) - 1
        return [
            Verdict(configuration=one, fault="255 registers a thread, 72 are allowed" * (place == last))
            for place, one in enumerate(candidates)
        ]

    def made(bench_of_all: Planned) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(device, "device_of", lambda where: device.DEVICES[0])
        monkeypatch.setattr(compiling, "pool", nullcontext)
        monkeypatch.setattr(compiling, "judged", judged)
        monkeypatch.setattr(contest, "contenders", lambda *given: given)
        monkeypatch.setattr(bench, "CudaBench", lambda given: bench_of_all(*given[:3]))

    return made


NORM = "norm_quantize, int8 rms, M 512, K 1024, bf16"


def test_a_named_problem_is_measured_kept_and_told_with_what_was_refused(
    run: Run, a_gpu: Callable[[Planned], None]
) -> None:
    a_gpu(Planned(seconds=lambda name: 1e-5))
    result = run(f"tune --target cuda --database rows.db --json told.json --trials 2 --problem '{NORM}'")
    assert result.exit_code == 0, result.stderr
    assert "Measured on NVIDIA H100" in result.stdout and "255 registers a thread" in result.stdout
    (chosen,) = json.loads(Path("told.json").read_text())["chosen"]
    assert (chosen["name"], chosen["M"]) == ("norm_quantize, int8 rms, K 1024, bf16", 512)
    assert chosen["refused"] >= 1
    rows = read_rows(Path("rows.db"), device.DEVICES[0].core)
    assert {row.workload for row in rows} == {NORM}


@dataclass
class Interrupted(Planned):
    """Ctrl-C is pressed while a problem is measured, by default the third."""

    begun: list[str] = field(default_factory=list)
    at: int = 3

    def __call__(self, problem: Problem, fit: Mapping[str, Configuration], peers: Sequence[str]) -> Planned:
        self.begun.append(problem.text)
        if len(self.begun) == self.at:
            raise KeyboardInterrupt
        return super().__call__(problem, fit, peers)


def test_ctrl_c_tells_what_was_measured_where_it_is_and_that_it_goes_on(
    run: Run, a_gpu: Callable[[Planned], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two linears at two numbers of rows, each with the pass before it: eight problems."""
    linears = (Linear(format="int8", N=N, K=K, out="fp32") for N, K in ((16, 32), (4, 16)))
    readings = {Reading(by="rows", x="fp32", readers=(linear,)): 1 for linear in linears}
    monkeypatch.setattr("qcompiler.cli.tune_gpu.readings_in", lambda *given: readings)
    bench_of_all = Interrupted(seconds=lambda name: 1e-5)
    a_gpu(bench_of_all)
    command = f"{COMMAND} --rows 16 --rows 64 --trials 2 --json told.json"
    result = run(command)
    assert result.exit_code == 130, result.stderr
    told = json.loads(Path("told.json").read_text())
    done = [f"{one['name']} {one['M']}" for one in told["chosen"]]
    assert told["stopped"] and told["left"] == 6
    assert done == ["int8 16x32 fp32 16", "quantize_rows, int8, K 32, fp32 16"]
    assert "Measured on NVIDIA H100; rows in rows.db" in result.stdout and "1.00x" in result.stdout
    assert "stopped with 6 problems left; run it again, and it goes on" in result.stderr
    assert "stopped by Ctrl-C" in result.stderr
    again = run(command)
    assert again.exit_code == 0, again.stderr
    assert json.loads(Path("told.json").read_text())["left"] == 0
    assert not {*bench_of_all.begun[3:]} & {*bench_of_all.begun[:2]}, "what was measured is left out"
    assert len(bench_of_all.begun) == 3 + 6


def test_ctrl_c_in_the_search_for_borders_leaves_the_search(
    run: Run, a_gpu: Callable[[Planned], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One linear with the pass before it at two numbers of rows, where float and codes win: the fifth problem
    is between these, and no problem that was asked for is left."""
    linear = Linear(format="int8", N=16, K=32, out="fp32")
    readings = {Reading(by="rows", x="fp32", readers=(linear,)): 1}
    monkeypatch.setattr("qcompiler.cli.tune_gpu.readings_in", lambda *given: readings)
    begun: list[str] = []
    a_gpu(Interrupted(
        seconds=lambda name: 1e-5 if (name == FLOAT) == ("M 16," in begun[-1]) else 1e-4, begun=begun, at=5,
    ))  # fmt: skip
    monkeypatch.setattr(  # the pass has one candidate
        compiling, "judged", lambda _, candidates, *given: [Verdict(configuration=one) for one in candidates]
    )
    result = run(f"{COMMAND} --rows 16 --rows 512 --trials 2 --json told.json")
    assert result.exit_code == 130, result.stderr
    assert "M 264" in begun[4], "half way"
    told = json.loads(Path("told.json").read_text())
    assert told["stopped"] is True and told["left"] == 1 and len(told["chosen"]) == 4
    assert "stopped with 1 problems left; run it again, and it goes on" in result.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--problem 'norm_quantize, int8 rms'", "is no problem, because one reads like 'norm_quantize, int8"),
        ("--problem 'norm, int8 rms, M 1, K 64, bf16'", "nothing is known of 'norm'; ask for one of int8"),
        ("--problem 'norm_quantize, int8 max, M 1, K 64, bf16'", "norm_quantize has no scheme 'int8 max'"),
        ("--problem 'quantize_rows, int8, M 1, K 64, float64'", "nothing tunes results in float64"),
        ("--problem 'int8_linear, int8, M 1, K 64, bf16'", "has no N, because products have outputs"),
        ("--problem 'int8_linear, int8, M 1, N 64, K 100, bf16'", "give M, and K rounded up to a multiple"),
        ("--problem 'quantize_rows, int8, M 0, K 64, bf16'", "there is a row at least"),
        ("--problem 'fp8_block_linear, int8, M 1, N 64, K 64, bf16'", "has no scheme 'int8'"),
        ("", "name a model, or problems by --problem"),
        ("zoo:mlp --problem 'quantize_rows, int8, M 1, K 64, bf16'", "name a model, or problems by"),
    ],
)  # fmt: skip
def test_what_is_no_problem_is_refused_in_a_sentence(run: Run, words: str, why: str) -> None:
    result = run(f"tune {words} --target cuda --no-device --database rows.db")
    assert result.exit_code != 0 and why in " ".join(result.stderr.split())


def test_rows_are_of_gpus(run: Run) -> None:
    result = run("tune zoo:mlp --rows 16 --database rows.db")
    assert result.exit_code != 0 and "add --target cuda" in " ".join(result.stderr.split())


def test_what_was_measured_is_shown_with_its_share_of_what_the_device_could(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"name": "int8 64x32", "M": 16, "contender": "float", "us": 1.5, "ratio": 1.0,
           "of_roofline": None, "refused": 2}  # fmt: skip
    other = {**one, "M": 512, "contender": "BM 128", "ratio": 1.4, "of_roofline": 0.62}
    linear = {"linear": "int8 64x32 bf16", "decisions": "float, from 200 int8_linear"}
    spilled = {"workload": "w", "candidate": "BM 256", "reason": "registers are spilled: 2656 bytes"}
    wrong = {**spilled, "reason": "its error is 3.00e-02, and 2.50e-03 is allowed"}
    refused = [spilled, {**spilled, "workload": "v"}, wrong]
    told = {"device": "NVIDIA H100", "left": 1, "stopped": False, "chosen": [one, other], "linears": [linear],
            "refused": refused}  # fmt: skip
    monkeypatch.setattr("qcompiler.cli.tune_gpu.check_device", lambda: None)
    monkeypatch.setattr("qcompiler.cli.tune_gpu.measured", lambda *given: told)
    result = run(COMMAND)
    assert result.exit_code == 0, result.stderr
    assert "1.40x" in result.stdout and "62%" in result.stdout
    assert "float, from 200 int8_linear" in result.stdout and "Measured on NVIDIA H100" in result.stdout
    assert "1 problems were not reached in time" in result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("BM 256")]
    assert [(line[-1], "2656" in line, "3.00e-02," in line) for line in lines] == [
        ("2", True, False), ("1", False, True)
    ]  # fmt: skip
