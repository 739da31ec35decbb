"""Layers measured, and what was found kept at once: a run that is stopped goes on where it was.

layers  -->  those without rows  -->  [shortlist  -->  race on a bench  -->  rows] each, by as many as measure
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

from torch import Tensor

from qcompiler.backends.shapes import shapes_of
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.lower import lower
from qcompiler.backends.tvm.schedules import (
    ordered,
    predicted,
    schedules_of,
    template_of,
    versions,
    workload,
    written,
)
from qcompiler.errors import TuningError
from qcompiler.ir import Graph
from qcompiler.progress import Tell, silent
from qcompiler.target import Target
from qcompiler.tune.database import Core, Database, Row, best, is_of
from qcompiler.tune.search import ROUNDS, Measured, race

PATIENCE = 30.0  # seconds for what is being compiled to end
LOSSES = 3  # times in a row that all who measure are lost and leave no row: then nobody is asked any more


class Bench(Protocol):
    """The candidates of one layer, ready to run: seconds of one call of one of them."""

    def sample(self, index: int) -> float: ...


Prepare = Callable[[Any, Sequence[Any], Isa], Bench]  # of a layer and its candidates


class Lost(Exception):
    """Who measured is gone; what was being measured is measured again by another."""


class Ended(Exception):
    """What is being measured is wanted no more."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One layer, and the schedules to compare."""

    layer: Any
    schedules: tuple[Any, ...]


def layers_of(graph: Graph, target: Target, inputs: Sequence[Tensor], isa: Isa) -> dict[Any, int]:
    """One layer of every workload whose schedule is open -> how many calls have it.

    None where a fusion was refused or taken against it: only measured can the two be compared.
    """
    asking = Asking(isa=isa)
    lower(graph, target, shapes_of(graph, inputs), isa, asking)
    by_name = {workload(layer): layer for layer in (*asking.chosen, *asking.weighed)}
    calls = Counter(map(workload, asking.chosen))
    return {layer: calls[name] for name, layer in by_name.items()}


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Chooses as if nothing were measured, and keeps what it is asked about."""

    isa: Isa
    chosen: list[Any] = field(default_factory=list)
    weighed: list[Any] = field(default_factory=list)

    def __call__(self, layer: Any) -> Any:
        self.chosen.append(layer)
        return predicted(layer, self.isa)

    def row(self, layer: Any) -> Row | None:
        self.weighed.append(layer)
        return None


def jobs(layers: Iterable[Any], rows: Sequence[Row], core: Core, isa: Isa, trials: int) -> list[Job]:
    """What is left to measure: layers with fewer rows of these versions than schedules to try."""
    measured = Counter(row.workload for row in rows if is_of(row, versions()))
    known = schedules_of(isa, core, rows)
    found = []
    for layer in layers:
        name, space = workload(layer), ordered(layer, isa)
        if measured[name] < min(trials, len(space)):
            first = [space[0], known(layer)]
            found.append(Job(layer=layer, schedules=tuple(dict.fromkeys([*first, *space]))[:trials]))
    return found


def tune(
    waiting: Sequence[Job],
    database: Database,
    crew: Callable[[], Sequence[Prepare]],
    core: Core,
    isa: Isa,
    *,
    rounds: int = ROUNDS,
    until: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
    peak: float | None = None,
    tell: Tell = silent,
) -> int:
    """Measure jobs until `clock` shows `until`, and keep each one's rows; returns how many are left.

    crew: who measures, at the same time; asked again when all of them are lost, and raises TuningError when
    there is nobody. So does this when they are lost again and again. peak: operations per second, for `tell`.
    """
    lost: list[Lost] = []  # since the last row
    left, total, ending = deque(waiting), len(waiting), threading.Event()

    def measured(job: Job, prepare: Prepare) -> list[Row]:
        done, work = total - len(left) - 1, 2 * template_of(job.layer).products(job.layer)

        def tick(found: Measured[int]) -> None:
            if ending.is_set():
                raise Ended
            share = "" if peak is None else f", {work / found.median / peak:.0%} of peak"
            tell(f"{workload(job.layer)}: best {found.median * 1e6:.1f} us{share}", done, total)

        tell(workload(job.layer), done, total)
        bench = prepare(job.layer, job.schedules, isa)
        found = race(
            range(len(job.schedules)), bench.sample, rounds=rounds, until=until, clock=clock, tick=tick
        )
        return [row(job, result, core) for result in found]

    while left and clock() <= until:
        if len(lost) == LOSSES:
            raise TuningError(
                f"whoever measures was lost {LOSSES} times in a row", why=str(lost[-1]),
                fix="look after the servers and run it again: all rows are kept",
            ) from lost[-1]  # fmt: skip
        fruitless = working(left, crew(), measured, database.add, lambda: clock() > until, ending)
        lost = [] if fruitless is None else [*lost, fruitless]
    return len(left)


def working(
    left: deque[Job],
    crew: Sequence[Prepare],
    measured: Callable[[Job, Prepare], list[Row]],
    keep: Callable[[list[Row]], None],
    over: Callable[[], bool],
    ending: threading.Event,
) -> Lost | None:
    """Let everyone take the next job until there is none; whoever is lost puts the job back.

    Returns how the last was lost, where no row was kept. An error or an interrupt ends all: a thread that
    still computes when Python ends would abort the process.
    """
    said: SimpleQueue[list[Row] | BaseException | None] = SimpleQueue()

    def work(prepare: Prepare) -> None:
        try:
            while left and not over() and not ending.is_set():
                job = left.popleft()
                try:
                    said.put(measured(job, prepare))
                except Lost as error:
                    left.appendleft(job)
                    said.put(error)
                    break
        except IndexError:  # another took the last one
            pass
        except BaseException as error:  # told where it can be told
            said.put(error)
        said.put(None)

    threads = [threading.Thread(target=work, args=(prepare,), daemon=True) for prepare in crew]
    for thread in threads:
        thread.start()
    working, kept = len(crew), 0
    lost: Lost | None = None
    try:
        while working:
            found = said.get()
            if found is None:
                working -= 1
            elif isinstance(found, Lost):
                lost = found
            elif isinstance(found, BaseException):
                raise found
            else:
                keep(found)
                kept += 1
    finally:
        if working:
            ending.set()
        for thread in threads:
            thread.join(PATIENCE)
    return None if kept else lost


def row(job: Job, found: Measured[int], core: Core) -> Row:
    return Row(
        workload=workload(job.layer), configuration=written(job.schedules[found.candidate]), isa=core.isa,
        processor=core.processor, seconds=found.median, spread=found.spread, rounds=len(found.seconds),
        **versions(),
    )  # fmt: skip


# ---------------------------------------------------------------- what is known


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What rows say of one layer: its best schedule, and the one that is chosen without measurement."""

    workload: str
    calls: int  # in the model
    products: int
    best: Row
    predicted: str
    predicted_seconds: float | None  # None: it was not measured

    @property
    def rate(self) -> float:
        """Operations per second."""
        return 2 * self.products / self.best.seconds


def known(layers: dict[Any, int], rows: Sequence[Row], isa: Isa) -> list[Tuned]:
    """The layers that have rows."""
    fastest = best(rows, versions())
    seconds = {(row.workload, row.configuration): row.seconds for row in rows if is_of(row, versions())}
    found = []
    for layer, calls in layers.items():
        name, guess = workload(layer), written(predicted(layer, isa))
        if name in fastest:
            found.append(Tuned(
                workload=name, calls=calls, products=template_of(layer).products(layer), best=fastest[name],
                predicted=guess, predicted_seconds=seconds.get((name, guess)),
            ))  # fmt: skip
    return found
