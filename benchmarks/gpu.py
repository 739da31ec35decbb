"""All kernels for GPUs on one device in about ten minutes, beside bfloat16 and a vendor's.

    python -m benchmarks.gpu [--budget 560] [--out benchmarks/results/gpu.json] [--stages ...] [--ship]
    python -m benchmarks.gpu --device cpu --small --out out/gpu.json

Stages come one after the other. Each may use what those before it have left, and is cut where its time ends:
cells that are left then are "skipped: budget". What fails its gate is not timed, and the process ends with 1.
The JSON and the page are written anew, whole, after each stage. Kernels that a checkout lacks are "absent".

Times are those of calls in a CUDA graph between two events, weights far in memory, in interleaved rounds; a
ratio is the median over rounds. Nothing of the device's settings is touched, clocks are only read. `--ship`
makes what was measured part of the package, as priors for the same device; the same rows lie beside the JSON,
as lines. `--device cpu --small` runs the same code without a GPU; its figures mean nothing.
"""

import argparse
import importlib.metadata
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import qcompiler.backends.triton.ops  # noqa: F401  registers torch.ops.qcompiler.triton_*
from benchmarks import (
    gpu_ceilings,
    gpu_decoder,
    gpu_gates,
    gpu_products,
    gpu_rows,
    gpu_trained,
    gpu_weights,
)
from benchmarks.gpu_ceilings import beyond, ceilings
from benchmarks.gpu_contest import ABSENT, OK, SKIPPED, WRONG, Cell, Clock, Figure, blank, measured
from benchmarks.gpu_page import draw, page
from benchmarks.gpu_products import Outcome
from benchmarks.gpu_rows import OURS
from benchmarks.gpu_verdicts import default, verdicts
from benchmarks.records import commit, keep, machine, versions
from qcompiler.backends.triton.ops import quantize_rows
from qcompiler.backends.triton.signatures import SIGNATURES
from qcompiler.backends.triton.tuning.compiling import pool
from qcompiler.backends.triton.tuning.device import Device
from qcompiler.backends.triton.tuning.families import FAMILIES, space, written
from qcompiler.backends.triton.tuning.problem import parsed
from qcompiler.backends.triton.tuning.products import QUANTIZED
from qcompiler.backends.triton.tuning.shipped import ship
from qcompiler.backends.triton.tuning.source import compiler
from qcompiler.backends.triton.tuning.tuner import versions as versions_of
from qcompiler.progress import Tell, silent
from qcompiler.tune.database import Row, to_text

ROUNDS = 9
ASKED = "driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"  # of nvidia-smi, which only tells


@dataclass(kw_only=True)
class Run:
    """One benchmark that is running. broken: ops that failed a check, of which nothing is timed."""

    device: torch.device
    small: bool
    rounds: int = ROUNDS
    clock: Clock = time.monotonic
    tell: Tell = silent
    figures: list[Figure] = field(default_factory=list)
    compiled: dict[gpu_products.Key, Outcome] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    clocks: dict[str, str] = field(default_factory=dict)

    @property
    def described(self) -> Device:
        return gpu_products.described(self.device)

    @property
    def has_fp8(self) -> bool:
        return self.described.capability >= 90

    @property
    def broken(self) -> set[str]:
        return {one.op for one in self.figures if one.stage == "gates" and one.status == WRONG}

    @property
    def failed(self) -> bool:
        return any(one.status == WRONG and one.ours for one in self.figures)


Work = Callable[[Run, str, float], Iterable[Figure]]
"""What a stage finds until the clock shows a time."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    seconds: float
    work: Work


def contest(cells: Callable[[Run], Iterable[Cell]]) -> Work:
    """The figures of cells, one cell after the other."""

    def work(run: Run, stage: str, until: float) -> Iterator[Figure]:
        every, broken = [*cells(run)], run.broken
        for done, cell in enumerate(every):
            run.tell(f"{stage}: {cell.problem.text}", done, len(every))
            if cell.absent:
                yield blank(stage, cell, ABSENT, cell.absent)
            elif cell.op in broken:
                yield blank(stage, cell, WRONG, "see its gates")
            elif run.clock() > until:
                yield blank(stage, cell, SKIPPED)
            else:
                yield from measured(stage, cell, run.device, rounds=run.rounds, until=until, clock=run.clock)
                if run.device.type == "cuda":
                    torch.cuda.empty_cache()  # graphs have memory of their own

    return work


def preflight(run: Run, stage: str, until: float) -> Iterator[Figure]:
    """One small kernel; and by many processes, what is checked and all candidates of products, compiled."""
    quantize_rows(torch.randn(16, 64, device=run.device), "int8")
    if run.device.type != "cuda":
        return
    asked = gpu_products.tasks(run.small, run.described)
    run.tell(f"{stage}: {len(asked)} candidates are compiled", 0, None)
    with pool(max(1, (os.cpu_count() or 2) - 1)) as executor:
        for place in range(len([*gpu_gates.checks(run.has_fp8)])):
            executor.submit(gpu_gates.tried, place, run.has_fp8)
        patience = max(until - run.clock(), 0.0)
        run.compiled |= gpu_products.compiled(asked, run.described, executor, None, patience)
    for op, scheme, name in asked:
        outcome = run.compiled.get((op, scheme, name), Outcome(status=SKIPPED))
        if outcome.status != OK:
            yield Figure(
                stage=stage, op=op, scheme=scheme, M=0, N=0, K=0, contender=name, status=outcome.status,
                reason=outcome.reason,
            )  # fmt: skip


def gates(run: Run, stage: str, until: float) -> Iterator[Figure]:
    checks = gpu_gates.checks(run.has_fp8)
    return gpu_gates.figures(stage, checks, run.device, until=until, clock=run.clock)


def products(run: Run) -> Iterator[Cell]:
    is_cpu = run.device.type == "cpu"
    fitted = gpu_products.default if is_cpu else gpu_products.fitted_by(run.compiled, run.described)
    return gpu_products.cells(run.small, fitted)


STAGES: tuple[Stage, ...] = (
    Stage(name="preflight", seconds=70, work=preflight),
    Stage(name=gpu_ceilings.STAGE, seconds=25, work=contest(lambda run: gpu_ceilings.cells(run.small))),
    Stage(name="baselines", seconds=50, work=contest(lambda run: gpu_products.baselines(run.small))),
    Stage(name="gates", seconds=35, work=gates),
    Stage(name="products", seconds=120, work=contest(products)),
    Stage(name="weight-only", seconds=70, work=contest(lambda run: gpu_weights.cells(run.small))),
    Stage(name="rows", seconds=45, work=contest(lambda run: gpu_rows.cells(run.small))),
    Stage(name="training", seconds=55, work=contest(lambda run: gpu_trained.cells(run.small))),
    Stage(name="attention", seconds=30, work=contest(lambda run: gpu_decoder.attentions(run.small))),
    Stage(name="layer", seconds=60, work=contest(lambda run: gpu_decoder.layers(run.small))),
)
BUDGET = sum(stage.seconds for stage in STAGES)


def perform(run: Run, stages: Sequence[Stage], budget: float, save: Callable[[], None]) -> None:
    """One stage after the other, and everything saved after each, and where somebody interrupts."""
    until = run.clock()
    for stage in stages:
        start, until = run.clock(), until + stage.seconds * budget / BUDGET
        run.clocks[stage.name] = clocks(run.device)
        run.stages[stage.name] = "interrupted"
        first = len(run.figures)
        try:
            for figure in stage.work(run, stage.name, until):
                run.figures.append(figure)
            is_cut = any(one.status == SKIPPED for one in run.figures[first:])
            run.stages[stage.name] = f"{run.clock() - start:.0f} s{', cut' if is_cut else ''}"
        finally:
            save()


def clocks(device: torch.device) -> str:
    """What the driver says of itself and of the device now, where it says anything."""
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return ""
    asked = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    return told.stdout.strip().partition("\n")[0]


def head(run: Run, name: str | None) -> dict[str, Any]:
    is_gpu = run.device.type == "cuda"
    return {
        "commit": name or commit(), **machine(), "versions": versions(("torch", "triton", "qcompiler")),
        "cuda": torch.version.cuda, "device": torch.cuda.get_device_name() if is_gpu else machine()["cpu"],
        "driver": clocks(run.device).partition(",")[0] or "unknown", "processors": run.described.processors,
        "capability": run.described.capability, "small": run.small, "rounds": run.rounds,
    }  # fmt: skip


def result(run: Run, head: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The JSON and the page of what was found so far."""
    of = ceilings(run.figures)
    errors = [] if run.small else beyond(run.figures, of, head["device"])
    found, chosen = verdicts(run.figures), default(run.figures)
    told = {
        **head, "stages": [*run.stages.items()], "clocks": run.clocks,
        "figures": [plain(one) for one in run.figures], "ceilings": asdict(of),
        "targets": [{**asdict(one), "verdict": one.word} for one in found],
        "default": asdict(chosen), "errors": errors,
    }  # fmt: skip
    return told, page(head, run.figures, of, found, chosen, errors, run.stages)


def plain(figure: Figure) -> dict[str, Any]:
    """For JSON, which has no infinity."""
    error = figure.error if figure.error is None or math.isfinite(figure.error) else None
    return {**asdict(figure), "error": error}


def rows(figures: Iterable[Figure], device: Device) -> list[Row]:
    """A row for each time, as the autotuner has them; of one that was measured twice, the last."""
    found = [
        Row(
            workload=one.workload, configuration=named(one, device), isa=device.core.isa,
            processor=device.core.processor, seconds=one.median, spread=one.spread,
            rounds=len(one.seconds), qcompiler=importlib.metadata.version("qcompiler"), compiler=made_by(one),
        )
        for one in figures if one.status == OK and one.seconds
    ]  # fmt: skip
    return [*{(row.workload, row.configuration): row for row in found}.values()]


def made_by(figure: Figure) -> str:
    """What its time depends on, as the autotuner has it where it knows the op.

    Of a product with the codes that it takes, that is who multiplies.
    """
    problem = parsed(figure.workload)
    if problem is not None and problem.op in FAMILIES:
        return versions_of(problem, figure.contender.removesuffix(QUANTIZED))["compiler"]
    return compiler(figure.kernel) if figure.kernel in SIGNATURES else f"torch {torch.__version__}"


def named(figure: Figure, device: Device) -> str:
    """A contender as the autotuner calls it: ours, where a stage times no other, is what the tables say."""
    problem = parsed(figure.workload)
    if figure.contender != OURS or problem is None or problem.op not in FAMILIES:
        return figure.contender
    return written(space(problem, device.capability)[0])


def main(arguments: Sequence[str] | None = None, stages: Sequence[Stage] = STAGES) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in stages]
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of all stages")
    parser.add_argument("--stages", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS}, and 1 in small")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes with which a CPU runs the same code")
    parser.add_argument("--ship", action="store_true", help="make the rows part of the package")
    parser.add_argument("--commit", help="what is measured, where the checkout has no history")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here that torch can use; --device cpu --small runs the same code on a CPU.")
    if given.ship and (given.small or given.device == "cpu"):
        sys.exit("Only what was measured on a GPU, in full size, can be shipped; leave --ship out.")
    torch.manual_seed(0)
    rounds = given.rounds or (1 if given.small else ROUNDS)
    run = Run(device=torch.device(given.device), small=given.small, rounds=rounds)
    told = head(run, given.commit)

    def save() -> None:
        keep(*result(run, told), given.out)
        given.out.with_suffix(".jsonl").write_text(to_text(rows(run.figures, run.described)))

    with Progress() as progress:
        task = progress.add_task("", total=None)

        def tell(what: str, done: int, total: int | None) -> None:
            progress.update(task, description=what, completed=done, total=total)

        run.tell = tell
        save()
        perform(run, [stage for stage in stages if stage.name in given.stages], given.budget, save)
    draw(run.figures, given.out.with_suffix(".svg"))
    print(result(run, told)[1])
    if given.ship:
        ship(rows(run.figures, run.described))
    return int(run.failed)


if __name__ == "__main__":
    sys.exit(main())
