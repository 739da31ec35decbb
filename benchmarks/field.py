"""A field of contenders on one workload: prepare each, open each, run them against each other."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.case import Case
from benchmarks.cells import Cell, cell_of, with_best
from benchmarks.contenders import BASELINE, CONTENDERS, Contender
from benchmarks.contest import contest
from benchmarks.process import Lost, Worker
from benchmarks.store import available, kept_case, kept_contender
from benchmarks.worker import Prepared, Ready, compete
from benchmarks.workloads import WORKLOADS
from qcompiler.progress import Tell

OPENING = 1800.0  # seconds that a contender may take to its first answer; compilers of C++ are slow
ROOM = 3000.0  # MB that must be free before one more contender is opened beside the others


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long is measured, on which cores, and where prepared models stay."""

    rounds: int
    slice: float
    cores: Sequence[int]
    work: Path


class Absent(Exception):
    """A contender needs what is not installed."""


def measure(workload: str, names: Sequence[str], settings: Settings, tell: Tell) -> list[Cell]:
    """One cell for everybody who can run the workload, whatever becomes of them."""
    kind = WORKLOADS[workload].kind
    entered = {name: CONTENDERS[name] for name in names if kind in CONTENDERS[name].kinds}
    steps = 2 * len(entered) + settings.rounds
    cells: dict[str, Cell] = {}
    tell(f"{workload}: float model", 0, steps)
    try:
        case = kept_case(workload, settings.work, cores=settings.cores)
    except Lost as error:
        return [failed(workload, name, f"the float model was not written: {error}") for name in entered]

    prepared: dict[str, Prepared] = {}
    for done, (name, contender) in enumerate(entered.items()):
        tell(f"{workload}: preparing {name}", done, steps)
        try:
            prepared[name] = prepare(name, contender, case, settings)
        except Absent as error:
            cells[name] = failed(workload, name, str(error), status="not installed")
        except Lost as error:
            cells[name] = failed(workload, name, str(error))

    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        ready: dict[str, Ready] = {}
        for done, name in enumerate(prepared, len(entered)):
            tell(f"{workload}: opening {name}", done, steps)
            try:
                worker = stack.enter_context(opened(name, case, settings))
                ready[name], workers[name] = worker.receive(patience=OPENING), worker
            except Lost as error:
                cells[name] = failed(workload, name, str(error))
        turns = iter(range(steps - settings.rounds, steps + 1))
        tell(f"{workload}: rounds", next(turns), steps)
        timing, lost = contest(
            workers, rounds=settings.rounds, slice=settings.slice,
            tick=lambda: tell(f"{workload}: rounds", next(turns), steps),
        )  # fmt: skip

    for name, opening in ready.items():
        if name in lost or BASELINE not in timing.seconds:
            reason = lost.get(name, f"{BASELINE} failed, and every speed is measured against it")
            cells[name] = failed(workload, name, reason)
        else:
            parts = (workload, WORKLOADS[workload]), (name, CONTENDERS[name])
            cells[name] = cell_of(*parts, BASELINE, timing, prepared[name], opening)
    bits = {name: contender.bits for name, contender in entered.items()}
    return with_best([cells[name] for name in entered], bits)


def prepare(name: str, contender: Contender, case: Case, settings: Settings) -> Prepared:
    missing = contender.missing()
    if missing:
        raise Absent(f"{contender.title} needs {' and '.join(missing)}")
    return kept_contender(name, contender, case, cores=settings.cores)


def opened(name: str, case: Case, settings: Settings) -> Worker:
    free = available()
    if free is not None and free < ROOM:
        raise Lost(f"{free:.0f} MB of memory are left beside the others, and {ROOM:.0f} must be free")
    return Worker(
        compete, name, case, case.folder / name, cores=settings.cores, log=case.folder / f"{name}.log"
    )  # fmt: skip


def failed(workload: str, contender: str, reason: str, *, status: str = "failed") -> Cell:
    return Cell(workload=workload, contender=contender, status=status, reason=reason)
