"""What the rows of a device say of a problem: which contender is the fastest, and by how much.

Rows are of buckets of M, and of some M between two that disagree.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.tuning.families import FLOAT, family_of, space, written
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.tuner import is_current
from qcompiler.tune.database import Core, Row, ranked

REPLACED = 1.03  # how many times faster than the default another has to be: within that, two are equal


@dataclass(frozen=True, kw_only=True)
class Choice:
    """contender: a peer's name, or a configuration's text. configuration: None for a peer.

    ratio: seconds of float over its own, NaN where float was not measured beside. is_prior: whether the rows
    are of another version of the kernel, and so only a reason to try.
    """

    contender: str
    configuration: Configuration | None
    seconds: float
    ratio: float
    is_prior: bool


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """The rows of a device, by workload."""

    capability: int
    rows: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)

    def choice(self, problem: Problem, *, peers: bool = True) -> Choice | None:
        """The fastest contender of a problem, ours alone or with its peers; None without rows.

        The rows are those of just so many M, or else of their bucket.
        """
        held = self.held(problem)
        if held.text not in self.rows:
            return None
        ours = {written(one): one for one in space(held, self.capability)}
        others = family_of(problem).peers if peers else ()
        every = [row for row in self.rows[held.text] if row.configuration in (*ours, *others)]
        rows = [row for row in every if is_current(row, held)] or every
        seconds = {row.configuration: row.seconds for row in ranked(rows, {})}
        if not seconds or not any(row.configuration in ours for row in rows):
            return None  # nothing ran, or a peer against nobody
        name, default = next(iter(seconds)), next(iter(ours))
        if name in ours and seconds.get(default, math.inf) <= seconds[name] * REPLACED:
            name = default
        return Choice(
            contender=name, configuration=ours.get(name), seconds=seconds[name],
            ratio=seconds.get(FLOAT, math.nan) / seconds[name], is_prior=not is_current(rows[0], held),
        )  # fmt: skip

    def held(self, problem: Problem) -> Problem:
        """Whose rows tell of a problem."""
        return problem if problem.text in self.rows else problem.bucketed

    def refusals(self, problem: Problem) -> list[Row]:
        """Why nothing of ours runs, where to measure again would change nothing: that of the tables first.

        Rows of these versions, all refused. "float" is timed when all verdicts are there, so its row says so.
        """
        held = self.held(problem)
        rows = {row.configuration: row for row in self.rows.get(held.text, ()) if is_current(row, held)}
        if FLOAT not in rows:
            return []
        ours = [rows[name] for name in map(written, space(held, self.capability)) if name in rows]
        return ours if all(row.is_refused for row in ours) else []

    def configuration(self, problem: Problem) -> Configuration | None:
        """The fastest of our own; None where nothing was measured."""
        found = self.choice(problem, peers=False)
        return None if found is None else found.configuration


def schedules_of(rows: Iterable[Row], core: Core, capability: int) -> Schedules:
    """The rows of one device among others; of two of one configuration the first."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.core == core:
            found.setdefault(row.workload, {}).setdefault(row.configuration, row)
    return Schedules(capability=capability, rows={name: (*held.values(),) for name, held in found.items()})
