"""Interleaved rounds over processes, and what comes of them.

round 1: A B C    round 2: B C A    round 3: C A B    ...
speed(B) = median over rounds of time(A) / time(B), where A is the baseline
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from benchmarks.process import Lost
from qcompiler.tune.measure import Timing, rotated

PATIENCE = 300.0  # seconds that one round of one contender may take


class Asked(Protocol):
    """A process that answers a slice with seconds per call."""

    def send(self, message: Any) -> None: ...

    def receive(self, *, patience: float) -> Any: ...


def contest(
    workers: Mapping[str, Asked], *, rounds: int, slice: float, tick: Callable[[], None] = lambda: None
) -> tuple[Timing, dict[str, str]]:
    """CPU seconds of everybody in every round; who is lost on the way has no times, but a reason."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    lost: dict[str, str] = {}
    for turn in range(rounds if workers else 0):
        for name in rotated([*workers], turn):
            if name in lost:
                continue
            try:
                workers[name].send(slice)
                seconds[name].append(workers[name].receive(patience=PATIENCE))
            except Lost as error:
                lost[name] = str(error)
        tick()
    kept = {name: tuple(found) for name, found in seconds.items() if name not in lost}
    return Timing(seconds=kept), lost
