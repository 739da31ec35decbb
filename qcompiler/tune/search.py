"""The fastest of a few candidates: the best predicted ones are timed in turn, and slow ones leave early.

round 1: A B C    round 2: B C A    round 3: C A    ...        a figure is the median over its rounds
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

ROUNDS = 12
LEAST_ROUNDS = 3  # before anything is judged
SLOW = 1.2  # times the best: what is slower after the first rounds is out


@dataclass(frozen=True, kw_only=True)
class Measured(Generic[T]):
    """Seconds of one candidate, one figure per round."""

    candidate: T
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median; 0 of a single round."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


def race(
    candidates: Sequence[T],
    sample: Callable[[T], float],
    *,
    rounds: int = ROUNDS,
    until: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
    tick: Callable[[Measured[T]], None] = lambda best: None,
) -> list[Measured[T]]:
    """Time all candidates round after round in rotating order; the fastest comes first.

    sample: seconds of one candidate, now. until: when `clock` shows it, the first rounds are the last.
    tick: is told the best after every round.
    """
    seconds: dict[T, list[float]] = {candidate: [] for candidate in candidates}
    alive = list(candidates)
    for turn in range(rounds):
        shift = turn % len(alive)
        for candidate in [*alive[shift:], *alive[:shift]]:
            seconds[candidate].append(sample(candidate))
        ordered = ranked({candidate: seconds[candidate] for candidate in alive})
        tick(ordered[0])
        if turn + 1 < LEAST_ROUNDS:
            continue
        if clock() > until:
            break
        limit = ordered[0].median * SLOW
        alive = [candidate for candidate in alive if statistics.median(seconds[candidate]) <= limit]
    return ranked(seconds)


def ranked(seconds: dict[T, list[float]]) -> list[Measured[T]]:
    found = [Measured(candidate=candidate, seconds=tuple(times)) for candidate, times in seconds.items()]
    return sorted(found, key=lambda measured: measured.median)
