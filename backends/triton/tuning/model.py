"""The linears of a model measured: at some numbers of rows, and then between those that disagree.

Beside them, or alone, problems that were named one by one.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from qcompiler.backends.triton.decisions import Linear, Table
from qcompiler.backends.triton.tuning.asked import linears_in, problem_of, problems_of
from qcompiler.backends.triton.tuning.borders import borders
from qcompiler.backends.triton.tuning.decided import measured, table
from qcompiler.backends.triton.tuning.device import Device
from qcompiler.backends.triton.tuning.families import family_of
from qcompiler.backends.triton.tuning.joint import Readings, names_at
from qcompiler.backends.triton.tuning.predict import bound
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.ranking import residual_of
from qcompiler.backends.triton.tuning.schedules import Schedules, schedules_of
from qcompiler.backends.triton.tuning.tuner import TRIALS, Judge, Prepare, is_current, tune
from qcompiler.progress import Tell, silent
from qcompiler.tune.database import KEY, Core, Database, Row


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is the fastest for a linear, or another problem, at so many rows.

    ratio: seconds of float over its own. of_roofline: of what the device could do at best; None for a peer.
    refused: how many candidates did not compile, or computed wrong numbers.
    """

    name: str
    M: int
    contender: str
    us: float
    ratio: float
    of_roofline: float | None
    refused: int


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """refused: rows with the reasons of what cannot be taken."""

    table: Table
    chosen: tuple[Told, ...]
    refused: tuple[Row, ...]


class Remembered:
    """The rows of one device, read once from a database, and known from then on as they are added."""

    def __init__(self, database: Database, core: Core) -> None:
        self.database = database
        self.held = {key(row): row for row in database.rows(core)}

    def rows(self, core: Core | None = None) -> list[Row]:
        return [row for row in self.held.values() if core is None or row.core == core]

    def add(self, rows: Iterable[Row]) -> None:
        """On the disk first: what cannot be kept is not known either."""
        found = [*rows]
        self.database.add(found)
        self.held |= {key(row): row for row in found}


def key(row: Row) -> tuple[str, ...]:
    return tuple(getattr(row, name) for name in KEY)


def tune_linears(
    readings: Readings,
    database: Database,
    device: Device,
    judge: Judge,
    prepare: Prepare,
    *,
    rows: Sequence[int],
    beside: Sequence[Problem] = (),
    shipped: Sequence[Row] = (),
    trials: int = TRIALS,
    until: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
    tell: Tell = silent,
) -> int:
    """Measure what has no row yet; a run that was stopped goes on where it was.

    rows: at which linears are measured first, with all that may run around them. beside: problems of other
    ops. shipped: rows that came with the package, from which the order on paper has learnt. Returns how many
    problems were not reached in time, those of a search for borders that ended early included.
    """
    residual, kept = residual_of(shipped, device), Remembered(database, device.core)
    linears = linears_in(readings)

    def measure(problems: Sequence[Problem], tell: Tell) -> int:
        return tune(
            problems, kept, device, judge, prepare, residual=residual, shipped=shipped, trials=trials,
            until=until, clock=clock, tell=tell,
        )  # fmt: skip

    def schedules() -> Schedules:
        return schedules_of(kept.rows(), device.core, device.capability)

    of_linears = [problem for linear in linears for M in rows for problem in problems_of(linear, readings, M)]
    left = measure([*dict.fromkeys([*of_linears, *beside])], tell)
    lacking: set[tuple[Linear, int]] = set()  # the probe during which the time was over
    for linear in linears if not left else ():

        def name(M: int, linear: Linear = linear) -> str:
            """Once the time is over, what the next larger number of rows says that was measured."""
            nonlocal left
            if not left:
                left = measure(problems_of(linear, readings, M), silent)
                lacking.update([(linear, M)] if left else [])
            whole = (rows for rows in measured(linear, schedules()) if (linear, rows) not in lacking)
            at = min(rows for rows in whole if rows >= M)
            return names_at(readings, at, schedules()).get(linear, "")

        borders(name, measured(linear, schedules()))
    return left


def known(readings: Readings, beside: Sequence[Problem], rows: Iterable[Row], device: Device) -> Tuned:
    """What rows say of the linears of a model, of what runs around them, and of other problems."""
    found, linears = schedules_of(rows, device.core, device.capability), linears_in(readings)
    at = [(linear, M) for linear in linears for M in measured(linear, found)]
    products = {problem_of(linear, M): str(linear) for linear, M in at}
    every = dict.fromkeys([*(one for linear, M in at for one in problems_of(linear, readings, M)), *beside])
    names = {problem: replace(problem, M=0).text for problem in every} | products
    return Tuned(
        table=table(readings, found),
        chosen=tuple(one for problem in every if (one := told(names[problem], problem, found, device))),
        refused=tuple(row for problem in every for row in refused_of(problem, found)),
    )


def told(name: str, problem: Problem, schedules: Schedules, device: Device) -> Told | None:
    """What rows say of a problem; None where only those of another version do."""
    choice = schedules.choice(problem)
    if choice is None or choice.is_prior:
        return None
    work = choice.configuration and family_of(problem).work(problem, choice.configuration)
    return Told(
        name=name, M=problem.M, contender=choice.contender, us=choice.seconds * 1e6, ratio=choice.ratio,
        of_roofline=bound(work, device) / choice.seconds if work else None,
        refused=len(refused_of(problem, schedules)),
    )  # fmt: skip


def refused_of(problem: Problem, schedules: Schedules) -> list[Row]:
    """The rows of these versions that could not run, or were wrong."""
    rows = schedules.rows.get(problem.text, ())
    return [row for row in rows if row.is_refused and is_current(row, problem)]
