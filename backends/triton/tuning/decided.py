"""What rows say of every linear, as decisions over the number of its rows.

    rows of (format, N, K) at M = 1, 16, 64, ...  -->  float, from 17 int8_linear, from 2049 int_mm

Between two numbers of rows that were measured, the larger one decides.
"""

from collections.abc import Mapping

from qcompiler.backends.triton.decisions import Decisions, Linear, Table
from qcompiler.backends.triton.tuning.asked import linears_in, problem_of
from qcompiler.backends.triton.tuning.borders import borders
from qcompiler.backends.triton.tuning.joint import Readings, names_at
from qcompiler.backends.triton.tuning.problem import LARGEST, parsed
from qcompiler.backends.triton.tuning.schedules import Schedules


def table(readings: Readings, schedules: Schedules) -> Table:
    """Decisions of linears that have rows of these versions; others have none."""
    found: dict[Linear, dict[int, str]] = {}
    rows = {linear: measured(linear, schedules) for linear in linears_in(readings)}
    for M in sorted({M for its in rows.values() for M in its}):
        for linear, name in names_at(readings, M, schedules).items():
            if M in rows[linear]:
                found.setdefault(linear, {})[M] = name
    return {linear: over_rows(found[linear]) for linear in rows if linear in found}


def over_rows(names: Mapping[int, str]) -> Decisions:
    """What is the fastest at some numbers of rows, ascending, as decisions."""
    starts, chosen = borders(names.__getitem__, [*names], grain=LARGEST)
    return Decisions(borders=tuple(starts), names=tuple(chosen), measured=True)


def measured(linear: Linear, schedules: Schedules) -> list[int]:
    """The numbers of rows for which a linear has rows in the database."""
    problems = filter(None, map(parsed, schedules.rows))
    return sorted({problem.M for problem in problems if problem == problem_of(linear, problem.M)})
