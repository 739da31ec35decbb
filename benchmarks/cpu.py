"""qcompiler beside its peers on one core of a CPU: speed, SQNR, size, memory, time to be ready.

    python -m benchmarks.cpu [--models NAME ...] [--peers NAME ...] [--rounds 12]
        [--work FOLDER] [--out FILE]

Every contender lives in a process of its own, pinned to one core. All of a workload are made ready first,
then run in interleaved rounds in rotating order, and each is compared with ONNX Runtime float within a round.
Peers that are not installed are listed as such; one that fails is a row with its reason. What was prepared
stays in the work folder, and is used again as long as nothing changes that it was made of. Run on a quiet
machine.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.case import Case
from benchmarks.cells import Cell, cell_of, to_mapping, with_best
from benchmarks.contenders import BASELINE, CONTENDERS, Contender
from benchmarks.contest import contest
from benchmarks.page import overview, page
from benchmarks.plot import draw
from benchmarks.process import Lost, Worker
from benchmarks.records import commit, machine, versions
from benchmarks.store import available, kept_case, kept_contender
from benchmarks.worker import Prepared, Ready, compete
from benchmarks.workloads import WORKLOADS

OPENING = 1800.0  # seconds that a contender may take to its first answer; compilers of C++ are slow
ROOM = 3000.0  # MB that must be free before one more contender is opened beside the others
VERSIONED = ("qcompiler", "torch", "onnx", "onnxruntime", "openvino", "nncf", "torchao")


def measure(workload: str, names: Sequence[str], given: argparse.Namespace, bar: Progress) -> list[Cell]:
    """All contenders on one workload."""
    row = WORKLOADS[workload]
    entered = {name: CONTENDERS[name] for name in names if row.kind in CONTENDERS[name].kinds}
    task = bar.add_task(f"{workload}: float model", total=2 * len(entered) + given.rounds)

    def told(what: str) -> None:
        bar.update(task, description=f"{workload}: {what}")

    cells, prepared, ready = [], dict[str, Prepared](), dict[str, Ready]()
    try:
        case = kept_case(workload, given.work, core=given.core)
    except Lost as error:
        bar.update(task, visible=False)
        return [failed(workload, name, f"the float model was not written: {error}") for name in entered]
    for name, contender in entered.items():
        told(f"preparing {name}")
        try:
            prepared[name] = prepare(name, contender, case, given)
        except (Absent, Lost) as error:
            cells.append(failed(workload, name, str(error), absent=isinstance(error, Absent)))
        bar.advance(task)
    with ExitStack() as stack:
        workers = {}
        for name in prepared:
            told(f"opening {name}")
            try:
                worker = stack.enter_context(opened(name, case, given))
                ready[name], workers[name] = worker.receive(patience=OPENING), worker
            except Lost as error:
                cells.append(failed(workload, name, str(error)))
            bar.advance(task)
        told("rounds")
        timing, lost = contest(
            workers, rounds=given.rounds, slice=given.slice, tick=lambda: bar.advance(task)
        )
    told("done")
    for name in ready:
        if name in lost or BASELINE not in timing.seconds:
            reason = lost.get(name, f"{BASELINE} failed, and with it the measure")
            cells.append(failed(workload, name, reason))
            continue
        parts = (workload, row), (name, CONTENDERS[name])
        cells.append(cell_of(*parts, BASELINE, timing, prepared[name], ready[name]))
    order = [*CONTENDERS]
    cells.sort(key=lambda cell: order.index(cell.contender))
    return with_best(cells, {name: contender.bits for name, contender in CONTENDERS.items()})


class Absent(Exception):
    """A contender needs what is not installed."""


def prepare(name: str, contender: Contender, case: Case, given: argparse.Namespace) -> Prepared:
    missing = contender.missing()
    if missing:
        raise Absent(f"{contender.title} needs {' and '.join(missing)}")
    return kept_contender(name, contender, case, core=given.core)


def opened(name: str, case: Case, given: argparse.Namespace) -> Worker:
    free = available()
    if free is not None and free < ROOM:
        raise Lost(f"{free:.0f} MB of memory are left beside the others, and {ROOM:.0f} must be free")
    folder = case.folder / name
    return Worker(compete, name, case, folder, core=given.core, log=case.folder / f"{name}.log")


def failed(workload: str, contender: str, reason: str, *, absent: bool = False) -> Cell:
    status = "not installed" if absent else "failed"
    return Cell(workload=workload, contender=contender, status=status, reason=reason)


def described(cells: Sequence[Cell], given: argparse.Namespace) -> dict[str, Any]:
    """The content of the JSON file."""
    return {
        "commit": commit(),
        "machine": machine() | {"load": os.getloadavg()[0], "cores": os.cpu_count()},
        "versions": versions(VERSIONED),
        "protocol": {"rounds": given.rounds, "slice_s": given.slice, "threads": 1, "baseline": BASELINE},
        "workloads": {
            name: {"title": WORKLOADS[name].title, "floor_db": WORKLOADS[name].floor_db}
            for name in given.models
        },
        "contenders": {
            name: {"title": contender.title, "bits": contender.bits, "ours": contender.ours}
            for name, contender in CONTENDERS.items()
        },
        "cells": [to_mapping(cell) for cell in cells],
    }


def write(result: dict[str, Any], out: Path) -> None:
    """The JSON file, and beside it the page and the pictures."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    read = json.loads(out.read_text())
    out.with_suffix(".md").write_text(page(read))
    for format in (".svg", ".png"):
        draw(read, out.with_suffix(format))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=[*WORKLOADS], default=[*WORKLOADS], metavar="NAME")
    parser.add_argument("--peers", nargs="+", choices=[*CONTENDERS], default=[*CONTENDERS], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--slice", type=float, default=0.4, help="seconds of a contender per round, at least")
    parser.add_argument("--core", type=int, default=0, help="the core that everything runs on")
    parser.add_argument("--work", type=Path, help="where prepared models stay; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu.json"))
    return parser.parse_args()


def main() -> None:
    given = options()
    names = [name for name in CONTENDERS if name in given.peers or name == BASELINE]
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    cells: list[Cell] = []
    with ExitStack() as stack:
        given.work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qcompiler-")))
        bar = stack.enter_context(Progress(*columns, console=console, disable=not console.is_terminal))
        for workload in given.models:
            cells += measure(workload, names, given, bar)
            write(described(cells, given), given.out)  # what is measured is not lost if the rest is stopped
    print(overview(json.loads(given.out.read_text())))


if __name__ == "__main__":
    main()
