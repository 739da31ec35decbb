"""The GPU benchmark: its stages on a CPU, what a wrong kernel and lack of time do, what figures mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu, gpu_contest, gpu_gates, gpu_products
from benchmarks.gpu import STAGES, Run, Stage, contest, main, perform, rows
from benchmarks.gpu_ceilings import Ceilings, beyond, shares
from benchmarks.gpu_contest import ABSENT, OK, SKIPPED, WRONG, Cell, Figure
from benchmarks.gpu_page import word
from benchmarks.gpu_products import Outcome
from benchmarks.gpu_verdicts import DECIDED_BY, TARGETS, default, verdict
from qcompiler.backends.triton.tuning.bench import Contenders
from qcompiler.backends.triton.tuning.device import DEVICES
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.products import QUANTIZED
from qcompiler.backends.triton.tuning.shipped import file_of, ship, shipped

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ran(out: Path, *more: str) -> tuple[int, dict[str, Any]]:
    code = main(["--device", "cpu", "--small", "--out", str(out), *more])
    return code, json.loads(out.read_text())


def test_every_stage_runs_to_its_end_on_a_cpu(tmp_path: Path) -> None:
    code, told = ran(tmp_path / "gpu.json")
    assert code == 0 and [name for name, _ in told["stages"]] == [stage.name for stage in STAGES]
    assert [one for one in told["figures"] if one["status"] != OK] == []
    timed = {one["stage"] for one in told["figures"] if one["seconds"]}
    assert timed == {stage.name for stage in STAGES} - {"preflight", "gates"}
    page = (tmp_path / "gpu.md").read_text()
    assert all(target.title in page for target in TARGETS) and "## Failed gates" not in page
    assert "| quantize_rows | int8 | 64, 64 | **triton** |" in page
    lines = (tmp_path / "gpu.jsonl").read_text().splitlines()
    assert len(lines) == len({
        (one["workload"], one["contender"]) for one in told["figures"] if one["seconds"]
    })  # fmt: skip
    assert "<svg" in (tmp_path / "gpu.svg").read_text()


def test_a_wrong_kernel_is_not_timed_and_the_process_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one number in the result of int8 products, the last bit is another."""
    right = gpu_contest.op

    def planted(name: str) -> Any:
        def wrong(*operands: Any) -> Tensor:
            y: Tensor = right(name)(*operands)
            y.view(torch.int16)[0, 0] ^= 1
            return y

        return wrong if name == "int8_linear" else right(name)

    monkeypatch.setattr(gpu_gates, "op", planted)
    code, told = ran(tmp_path / "gpu.json", "--stages", "gates", "products")
    products = [one for one in told["figures"] if one["stage"] == "products"]
    assert code == 1
    assert {one["status"] for one in products if one["op"] == "int8_linear"} == {WRONG}
    assert {one["status"] for one in products if one["op"] == "fp8_linear"} == {OK}
    assert not any(one["seconds"] for one in products if one["op"] == "int8_linear")
    assert "## Failed gates" in (tmp_path / "gpu.md").read_text()


def test_candidates_are_few_with_the_default_first_and_each_is_compiled_once() -> None:
    asked = gpu_products.tasks(False, DEVICES[0])
    for problem in gpu_products.problems(False):
        names = [*gpu_products.candidates(problem, DEVICES[0])]
        assert len(names) == gpu_products.TRIALS and names[0] == next(iter(gpu_products.default(problem)))
        assert {(problem.op, problem.scheme, name) for name in names} <= asked.keys()
    fitted = gpu_products.fitted_by({key: Outcome(status=WRONG) for key in asked}, DEVICES[0])
    assert fitted(gpu_products.problems(False)[0]) == {}


def test_parts_and_walking_are_among_the_candidates() -> None:
    """Where paper says that they gain: no stage has to ask for them."""
    found = {
        (problem.M <= 256, word)
        for problem in gpu_products.problems(False)
        for one in gpu_products.candidates(problem, DEVICES[0]).values()
        for word in ("SPLIT", "PERSISTENT")
        if word in one.constants
    }
    assert found >= {(True, "SPLIT"), (False, "PERSISTENT")}


# ---------------------------------------------------------------- time


class Clock:
    """Goes on by a second at each call of a contender."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def cells(clock: Clock, count: int, wrong: str = "") -> Iterator[Cell]:
    def call(copy: int) -> Tensor:
        clock.now += 1
        return torch.zeros(1)

    def prepare(device: torch.device) -> Contenders:
        return Contenders(
            calls={"ours": call, "float": call},
            copies=1,
            wrong=lambda name, y: wrong if name == "ours" else "",
        )

    for number in range(count):
        yield Cell(op="op", scheme="int8", M=number + 1, prepare=prepare)


def run_of(clock: Clock, rounds: int = 2) -> Run:
    return Run(device=CPU, small=True, rounds=rounds, clock=clock)


def statuses(run: Run) -> list[str]:
    return [one.status for one in run.figures]


def test_a_stage_that_overruns_is_cut_and_the_next_one_has_its_time() -> None:
    """A cell of ours takes 2 + 2 x 2 s; the first stage has 7 of them, and the second what is left of 14."""
    clock = Clock()
    run = run_of(clock)
    stages = [
        Stage(name=name, seconds=7, work=contest(lambda run: cells(clock, 3))) for name in ("first", "second")
    ]
    perform(run, stages, gpu.BUDGET, lambda: None)
    first = [one for one in run.figures if one.stage == "first"]
    assert [(one.M, one.status) for one in first] == [
        (1, OK),
        (1, OK),
        (2, SKIPPED),
        (2, SKIPPED),
        (3, SKIPPED),
    ]
    assert [len(one.seconds) for one in first] == [2, 2, 0, 0, 0]
    assert run.stages["first"].endswith(", cut")
    assert any(one.status == OK for one in run.figures if one.stage == "second")
    assert not run.failed


def test_what_fails_its_gate_is_not_timed_and_others_are() -> None:
    clock = Clock()
    run = run_of(clock)
    perform(run, [Stage(name="one", seconds=99, work=contest(lambda run: cells(clock, 1, "wrong")))], 1e9,
            lambda: None)  # fmt: skip
    assert {one.contender: (one.status, len(one.seconds)) for one in run.figures} == {
        "ours": (WRONG, 0), "float": (OK, 2)
    }  # fmt: skip
    assert run.failed


def test_an_interrupted_run_leaves_whole_files(tmp_path: Path) -> None:
    def interrupted(run: Run, stage: str, until: float) -> Iterable[Figure]:
        yield from contest(lambda run: cells(Clock(), 1))(run, stage, until)
        raise KeyboardInterrupt

    stages = [
        Stage(name="first", seconds=9, work=interrupted),
        Stage(name="second", seconds=9, work=interrupted),
    ]
    with pytest.raises(KeyboardInterrupt):
        main(["--device", "cpu", "--small", "--out", str(tmp_path / "gpu.json")], stages)
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert told["stages"] == [["first", "interrupted"]]
    assert {one["contender"] for one in told["figures"]} == {"ours", "float"}
    assert not [*tmp_path.glob("*.new")]


def test_a_kernel_that_is_not_there_is_absent() -> None:
    run = run_of(Clock())
    cell = replace(next(cells(Clock(), 1)), needs=("qcompiler.backends.triton.ops.of_tomorrow",))
    perform(run, [Stage(name="one", seconds=9, work=contest(lambda run: [cell]))], 1e9, lambda: None)
    assert statuses(run) == [ABSENT] and not run.failed


def test_without_a_gpu_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^There is no GPU here .*\.$"):
        main([])
    with pytest.raises(SystemExit, match=r"^Only what was measured on a GPU"):
        main(["--device", "cpu", "--ship"])


# ---------------------------------------------------------------- what figures mean


def figure(op: str, scheme: str, sizes: tuple[int, int, int], ratio: float, **more: Any) -> Figure:
    M, N, K = sizes
    fields = {"contender": "ours", "seconds": (1e-4,), "over": {"float": ratio}, **more}
    return Figure(stage="a stage", op=op, scheme=scheme, M=M, N=N, K=K, **fields)


def test_a_target_is_held_by_the_worst_cell_and_the_best_of_ours_in_it() -> None:
    (target,) = (one for one in TARGETS if "codes made, N from 8192" in one.title)
    fast = [
        figure("int8_linear", "int8", (8192, 8192, 8192), 1.4, contender=f"a{QUANTIZED}"),
        figure("fp8_linear", "e4m3 fast", (8192, 8192, 8192), 1.6, contender=f"a{QUANTIZED}"),
        figure("int8_linear", "int8", (8192, 8192, 8192), 1.9),  # its codes were there
        figure("int8_linear", "int8", (8192, 4096, 4096), 1.2, contender=f"a{QUANTIZED}"),  # another target's
    ]
    found = verdict(target, fast)
    assert (found.measured, found.word, found.where) == (1.6, "met", "M 8192, N 8192, K 8192")
    slow = figure("int8_linear", "int8", (2048, 8192, 8192), 1.3, contender=f"a{QUANTIZED}")
    assert verdict(target, [*fast, slow]).word == "missed"
    lost = replace(slow, status=SKIPPED, contender="", seconds=(), over={})
    assert verdict(target, [*fast, lost]).word == "met, 1 cells without time"
    assert verdict(target, [lost]).word == verdict(target, []).word == "not measured"


def decided(integer: float, fast: float, promoted: float) -> tuple[int | None, str]:
    schemes = (("int8_linear", "int8", integer), ("fp8_linear", "e4m3 fast", fast),
               ("fp8_linear", "e4m3 promote128", promoted))  # fmt: skip
    found = default(
        figure(op, scheme, sizes, ratio, contender=f"a{QUANTIZED}")
        for sizes in DECIDED_BY for op, scheme, ratio in schemes
    )  # fmt: skip
    return found.rule, found.text


def test_the_first_rule_that_fires_decides_the_default() -> None:
    assert decided(1.0, 1.04, 1.0)[0] == 1
    assert decided(1.33, 1.4, 1.3)[0] == 2
    assert decided(1.2, 1.4, 1.35) == (3, "FP8 by rows, backward promote128: adding in float32 costs 4%")
    assert decided(1.2, 1.4, 1.25) == (3, "FP8 by rows, backward fast: adding in float32 costs 12%")
    one = figure("int8_linear", "int8", DECIDED_BY[0], 2.0, contender=f"a{QUANTIZED}")
    assert default([one]).rule is None and default([one]).ratios == {}


def test_more_than_a_ceiling_is_an_error_of_the_benchmark() -> None:
    of = Ceilings(bytes=3e12, rates={"int8": 1.6e15})
    rows = figure("quantize_rows", "int8", (1, 1, 1), 1.0, bytes=3.0e8, operations=1.0e11, kind="int8")
    assert shares(rows, of) == (1.0, 0.625)
    assert beyond([rows], of, "NVIDIA H100 80GB HBM3") == []
    (error,) = beyond([replace(rows, bytes=3.2e8)], of, "NVIDIA H100 80GB HBM3")
    assert "107% of the memory's speed" in error
    (error,) = beyond([replace(rows, operations=3e11)], of, "NVIDIA H100 80GB HBM3")
    assert "152% of the data sheet's operations" in error


def test_only_what_is_clearly_faster_is_taken() -> None:
    words = [word(figure("op", "int8", (1, 1, 1), ratio)) for ratio in (1.06, 1.02, 0.98, 0.9)]
    assert words == ["take", "tie", "tie", "refuse"]


def test_rows_come_back_from_the_package_for_their_device_alone(tmp_path: Path) -> None:
    h100, h200 = DEVICES[:2]
    first = rows([figure("int8_linear", "int8", (1, 2, 3), 2.0, workload="w")], h100)
    ship(first, tmp_path)
    second = rows([figure("int8_linear", "int8", (1, 2, 3), 2.0, workload="w", seconds=(2e-4,))], h100)
    other = rows([figure("int8_linear", "int8", (1, 2, 3), 2.0, workload="v", contender="b")], h100)
    assert ship([*second, *other], tmp_path) == [file_of(h100.core, tmp_path)]
    assert shipped(h100.core, tmp_path) == [*other, *second]
    assert shipped(h200.core, tmp_path) == []


@pytest.mark.parametrize("suffix", ["", QUANTIZED])
def test_a_row_is_of_who_computes_with_or_without_the_codes(suffix: str) -> None:
    of = Problem(op="int8_linear", scheme="int8", M=64, N=64, K=64)
    figures = [
        figure("int8_linear", "int8", (64, 64, 64), 1.0, contender=f"{name}{suffix}", workload=of.text)
        for name in ("BM 128", "int_mm")
    ]
    ours, vendors = rows(figures, DEVICES[0])
    assert ours.compiler.startswith("triton ") and vendors.compiler.startswith("torch ")
