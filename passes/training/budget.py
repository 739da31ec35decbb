"""Choosing bits under a budget: the least work with which a step fits, and of that the least error.

    minimise    bytes that are packed
    subject to  peak(timeline, b) <= budget  and  sum_t C_t v(b_t) <= limit^2

Greedy, then a local search: values are stored one after another, each time that which frees most of what is
over the budget for the work and the error that it adds; then bits are given back as far as the budget allows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qcompiler.errors import PlanError
from qcompiler.passes.training.liveness import Timeline
from qcompiler.passes.training.saved import Saved
from qcompiler.passes.training.sensitivity import variance


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Bits of the values that are stored, and what follows from them.

    peak: bytes. over: bytes above the budget, summed over all moments. work: bytes that have to be packed.
    error: of the gradient, relative, to be expected: sqrt(sum C v).
    """

    bits: dict[str, int]
    peak: int
    over: int
    work: int
    error: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What can be stored, how that is felt (C by name), when it lives, and what has to hold."""

    values: Sequence[Saved]
    costs: Mapping[str, float]
    timeline: Timeline
    budget: int
    limit: float

    def outcome(self, bits: Mapping[str, int]) -> Choice:
        stored = [value for value in self.values if value.name in bits]
        live = self.timeline.stored({value.name: value.bytes(bits[value.name]) for value in stored})
        return Choice(
            bits=dict(bits),
            peak=int(live.max()),
            over=int((live - self.budget).clip(0).sum()),
            work=sum(value.bytes() for value in stored),
            error=sum(self.costs.get(name, 0.0) * variance(width) for name, width in bits.items()) ** 0.5,
        )

    def lower(self, bits: Mapping[str, int]) -> Iterator[Choice]:
        """Every way to store one value in the next fewer bits."""
        for value in self.values:
            fewer = [width for width in value.bits if width < bits.get(value.name, 64)]
            if fewer:
                yield self.outcome({**bits, value.name: max(fewer)})

    def higher(self, bits: Mapping[str, int]) -> Iterator[Choice]:
        """Every way to store one value in the next more bits, or not at all."""
        for value in self.values:
            if value.name in bits:
                more = [width for width in value.bits if width > bits[value.name]]
                rest = {name: width for name, width in bits.items() if name != value.name}
                yield self.outcome({**rest, value.name: min(more)} if more else rest)

    def holds(self, choice: Choice) -> bool:
        return choice.over == 0 and choice.error <= self.limit


def choose(problem: Problem) -> Choice:
    """A choice that holds. Raises PlanError with the least that would do.

    A step at a time may come to a stand where two moments are equally bad; aiming lower goes on from there.
    """
    least = problem.outcome({})
    for tenths in range(10, -1, -1):
        found = descended(problem, replace(problem, budget=problem.budget * tenths // 10))
        if problem.holds(found):
            return relaxed(problem, found)
        least = min(least, found, key=lambda choice: choice.peak)
    raise PlanError(
        f"a step does not fit into {problem.budget:,} bytes",
        why=f"with an error of at most {problem.limit:g} it needs {least.peak:,}",
        fix="give it more memory, a smaller batch, or a larger limit",
    )


def descended(problem: Problem, aim: Problem) -> Choice:
    """Store values one after another until what is aimed at holds, or nothing brings it nearer."""
    now = aim.outcome({})
    while now.over:
        found = [
            choice
            for choice in aim.lower(now.bits)
            if choice.over < now.over and choice.error <= problem.limit
        ]
        if not found:
            break
        now = min(found, key=lambda choice, now=now: price(choice, now))  # type: ignore[misc]
    return problem.outcome(now.bits)


def price(choice: Choice, now: Choice) -> tuple[float, float]:
    """Work, and then error, for each byte above the budget that a step saves."""
    freed = now.over - choice.over
    return (choice.work - now.work) / freed, (choice.error**2 - now.error**2) / freed


def relaxed(problem: Problem, now: Choice) -> Choice:
    """Give back what is not needed: work first, then error."""
    while True:
        fitting = [choice for choice in problem.higher(now.bits) if problem.holds(choice)]
        if not fitting:
            return now
        now = min(fitting, key=lambda choice: (choice.work, choice.error))
