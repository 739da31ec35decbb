"""Planning a step under a budget of memory: what is computed again, and what is stored in how many bits.

    minimise    seconds(bytes that are packed, operations that are done twice)
    subject to  simulated peak <= budget, expected error of the gradient <= limit

For each set of products that is tried, `budget` chooses the bits. The sets: none, each kind of product alone,
and then those together that free most for what they cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch._subclasses.fake_tensor import unset_fake_temporarily

from qcompiler.errors import PlanError
from qcompiler.passes.training.budget import Choice, Problem, choose
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.liveness import timeline
from qcompiler.passes.training.partition import Cutting, prepare, work
from qcompiler.passes.training.recompute import Kind, kinds
from qcompiler.passes.training.saved import Saved, saved
from qcompiler.passes.training.sensitivity import sensitivities
from qcompiler.passes.training.speed import Speed
from qcompiler.progress import Tell, silent


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """A set of products that are computed again, and the best that bits can do with it.

    operations: of all products of a step. lowest: the peak with everything in the fewest bits. choice: None
    where nothing fits.
    """

    again: tuple[Kind, ...]
    halves: Halves
    values: tuple[Saved, ...]
    operations: int
    lowest: int
    choice: Choice | None

    @property
    def bits(self) -> dict[str, int]:
        """Of the values that are stored, where something fits."""
        return self.choice.bits if self.choice else {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Planner:
    """A graph to cut, and what a plan for it has to keep to.

    batch: real inputs, by which sensitivities are measured; None where there are none, and then any error is
    allowed. limit: of the expected relative error of the gradient.
    """

    cutting: Cutting
    batch: Sequence[Any] | None
    budget: int
    limit: float
    speed: Speed
    tell: Tell = silent

    def plan(self) -> Trial:
        """The fastest trial that fits. Raises PlanError with the least that would do."""
        costs: dict[str, float] = {}  # C of every value that was met so far
        first = self.trial((), costs)
        if first.choice is not None and not first.choice.bits:
            return first
        found = kinds(self.cutting.joint)
        alone = []
        for done, kind in enumerate(found):
            self.tell("trying what to compute again", done, len(found))
            alone.append(self.trial((kind,), costs))
        useful = [trial for trial in alone if trial.lowest < first.lowest]
        useful.sort(key=lambda one: (one.operations - first.operations) / (first.lowest - one.lowest))
        together = [
            self.trial(tuple(trial.again[0] for trial in useful[:count]), costs)
            for count in range(2, len(useful) + 1)
        ]
        trials = (first, *alone, *together)
        fitting = [trial for trial in trials if trial.choice is not None]
        if not fitting:
            raise PlanError(
                f"a step does not fit into {self.budget:,} bytes",
                why=f"with everything in the fewest bits it needs {min(trial.lowest for trial in trials):,}, "
                f"and its gradient may have an error of {self.limit:g}",
                fix="give it more memory, a smaller batch, or a larger tolerance",
            )
        return min(fitting, key=lambda trial: self.seconds(trial, first))

    def seconds(self, trial: Trial, first: Trial) -> float:
        """What a step takes longer than one that keeps everything as it is, predicted."""
        assert trial.choice is not None
        twice = trial.operations - first.operations
        return trial.choice.work * self.speed.per_byte + twice * self.speed.per_operation

    def trial(self, again: tuple[Kind, ...], costs: dict[str, float]) -> Trial:
        """What becomes of a set of products; the costs of values that none before had are added."""
        names = [name for kind in again for name in kind.nodes]
        halves = self.cutting.cut(names)
        prepare(halves, frugal=bool(again))
        values = saved(halves)
        lives = timeline(halves)
        costs |= self.felt(halves, [value for value in values if value.name not in costs])
        problem = Problem(
            values=[value for value in values if value.bits], costs=costs, timeline=lives,
            budget=self.budget, limit=self.limit,
        )  # fmt: skip
        try:
            choice = choose(problem)
        except PlanError:
            choice = None
        least = {value.name: value.bytes(min(value.bits)) for value in values if value.bits}
        return Trial(
            again=again, halves=halves, values=values, operations=work(halves),
            lowest=lives.peak(least).bytes, choice=choice,
        )  # fmt: skip

    def felt(self, halves: Halves, values: Sequence[Saved]) -> dict[str, float]:
        """How much is felt of values that have a choice of bits."""
        open_ = [value for value in values if len(value.bits) > 1]
        if self.batch is None or not open_:
            return {}
        with unset_fake_temporarily():
            return sensitivities(halves, open_, self.batch, tell=self.tell)
