"""The linears of a model measured: at some numbers of rows, and then between those that disagree."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qcompiler.backends.triton.decisions import Problem as Linear
from qcompiler.backends.triton.decisions import Table
from qcompiler.backends.triton.tuning.borders import borders
from qcompiler.backends.triton.tuning.decided import fastest, measured, problem_of, quantizer_of, table
from qcompiler.backends.triton.tuning.device import Device
from qcompiler.backends.triton.tuning.families import family_of
from qcompiler.backends.triton.tuning.predict import bound
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.ranking import residual_of
from qcompiler.backends.triton.tuning.schedules import Schedules, schedules_of
from qcompiler.backends.triton.tuning.tuner import TRIALS, Judge, Prepare, is_current, tune
from qcompiler.progress import Tell, silent
from qcompiler.tune.database import Database, Row


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is the fastest for a linear at so many rows.

    ratio: seconds of float over its own. of_roofline: of what the device could do at best; None for a peer.
    refused: how many candidates did not compile, or computed wrong numbers.
    """

    linear: Linear
    M: int
    contender: str
    us: float
    ratio: float
    of_roofline: float | None
    refused: int


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """left: problems that were not reached in time. refused: rows with the reasons of what cannot be taken."""

    table: Table
    chosen: tuple[Chosen, ...]
    refused: tuple[Row, ...]
    left: int


def tune_linears(
    linears: Sequence[Linear],
    database: Database,
    device: Device,
    judge: Judge,
    prepare: Prepare,
    *,
    rows: Sequence[int],
    shipped: Sequence[Row] = (),
    trials: int = TRIALS,
    until: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
    tell: Tell = silent,
) -> Tuned:
    """Measure what has no row yet; a run that was stopped goes on where it was.

    shipped: rows that came with the package, from which the order on paper has learnt.
    """
    residual = residual_of(shipped, device)

    def measure(problems: Sequence[Problem], tell: Tell) -> int:
        return tune(
            problems, database, device, judge, prepare, residual=residual, shipped=shipped, trials=trials,
            until=until, clock=clock, tell=tell,
        )  # fmt: skip

    def known() -> Schedules:
        return schedules_of(database.rows(device.core), device.core, device.capability)

    left = measure([problem for linear in linears for M in rows for problem in problems_of(linear, M)], tell)
    for linear in linears:

        def name(M: int, linear: Linear = linear) -> str:
            if clock() <= until:
                measure(problems_of(linear, M), silent)
            return fastest(linear, M, known())

        if not left and clock() <= until:
            borders(name, measured(linear, known()))
    found = known()
    asked = [(linear, M) for linear in linears for M in measured(linear, found)]
    chosen = (one for linear, M in asked if (one := told(linear, M, found, device)))
    problems = dict.fromkeys(problem for linear, M in asked for problem in problems_of(linear, M))
    return Tuned(
        table=table(linears, found), chosen=tuple(chosen), left=left,
        refused=tuple(row for problem in problems for row in refused_of(problem, found)),
    )  # fmt: skip


def refused_of(problem: Problem, schedules: Schedules) -> list[Row]:
    """The rows of these versions that could not run, or were wrong."""
    rows = schedules.rows.get(problem.text, ())
    return [row for row in rows if row.is_refused and is_current(row, problem)]


def problems_of(linear: Linear, M: int) -> list[Problem]:
    """Its product, and what makes the codes that it reads."""
    quantizer = quantizer_of(linear, M)
    return [problem_of(linear, M), *([quantizer] if quantizer else [])]


def told(linear: Linear, M: int, schedules: Schedules, device: Device) -> Chosen | None:
    """What rows say of a linear at so many rows; None where only those of another version do."""
    problem = problem_of(linear, M)
    choice = schedules.choice(problem)
    if choice is None or choice.is_prior:
        return None
    work = choice.configuration and family_of(problem).work(problem, choice.configuration)
    return Chosen(
        linear=linear, M=M, contender=choice.contender, us=choice.seconds * 1e6, ratio=choice.ratio,
        of_roofline=bound(work, device) / choice.seconds if work else None,
        refused=len(refused_of(problem, schedules)),
    )  # fmt: skip
