"""Honest comparison of running times: interleaved rounds in one process, CPU time, medians of ratios.

round 1: A B    round 2: B A    round 3: A B    ...        ratio = median over rounds of time(A) / time(B)
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ROUNDS = 9
WARM_UP = 2
SLICE = 0.02  # seconds that one contender runs per round, at least


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds per call of each contender, one figure per round."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, over: str, under: str) -> list[float]:
        """time(over) / time(under) of every round: above 1, `under` is faster."""
        return [a / b for a, b in zip(self.seconds[over], self.seconds[under], strict=True)]

    def ratio(self, over: str, under: str) -> float:
        return statistics.median(self.ratios(over, under))


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.process_time,
    tick: Callable[[], None] = lambda: None,
    slice: float = SLICE,
) -> Timing:
    """Time every contender in every round, in rotating order; `clock` counts CPU seconds, `tick` progress."""
    repeats = {name: warm_up(run, clock, slice) for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        for name in rotated(names, turn):
            seconds[name].append(timed(contenders[name], repeats[name], clock))
        tick()
    return Timing(seconds={name: tuple(found) for name, found in seconds.items()})


def rotated(names: Sequence[str], turn: int) -> list[str]:
    shift = turn % len(names)
    return [*names[shift:], *names[:shift]]


def warm_up(run: Callable[[], object], clock: Callable[[], float], slice: float = SLICE) -> int:
    """Run a few times, and say how many calls fill one slice."""
    for _ in range(WARM_UP):
        run()
    once = timed(run, 1, clock)
    return max(1, min(1000, round(slice / max(once, 1e-6))))


def timed(run: Callable[[], object], repeat: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeat):
        run()
    return (clock() - start) / repeat
