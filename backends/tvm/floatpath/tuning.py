"""Float functions measured against torch, and what was found kept at once.

group  -->  torch, the schedule without measurement, traces that are drawn  -->  race  -->  rows

The candidates are steps as programs run them, so a figure is what the model pays, calls and all. Rows of all
candidates of a group are kept together: a run that is stopped begins with the group that it was at. What LLVM
does not take has a row as well, of infinite seconds, so that no later run tries it again.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.shapes import shapes_of
from qcompiler.backends.tvm.build import REFUSALS, compiled, processor_for, target_of
from qcompiler.backends.tvm.floatpath.choice import FUSED, TORCH, by_rule, made, unscheduled, workload
from qcompiler.backends.tvm.floatpath.draw import drawn
from qcompiler.backends.tvm.floatpath.group import Group
from qcompiler.backends.tvm.floatpath.step import Floats
from qcompiler.backends.tvm.floatpath.steps import groups_of
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.lower import lowered_steps
from qcompiler.backends.tvm.narrow import one_thread
from qcompiler.backends.tvm.program import Compute, Host, State
from qcompiler.backends.tvm.schedules import Schedules, versions
from qcompiler.errors import TuningError
from qcompiler.ir import Graph, arguments, spec
from qcompiler.progress import Tell, silent
from qcompiler.target import Target
from qcompiler.tune.database import Core, Database, Row, best, is_of
from qcompiler.tune.search import ROUNDS, Measured, race

SHORTEST = 1e-3  # seconds of a sample, so that the clock does not count
LONGEST = 300  # letters of a reason: TVM may print a whole function


def groups_in(graph: Graph, target: Target, inputs: Sequence[Tensor], isa: Isa) -> dict[Group, int]:
    """One group of every workload in the program of a graph -> how many calls have it."""
    shapes = shapes_of(graph, inputs)
    steps = lowered_steps(graph, target, shapes, isa, Schedules(isa=isa))
    found = groups_of(steps, graph.output.all_input_nodes, shapes)
    one = {workload(group): group for group in found}
    return {one[name]: count for name, count in Counter(map(workload, found)).items()}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One group to measure, how many traces to draw, and the configurations that have rows already."""

    group: Group
    trials: int
    measured: frozenset[str] = frozenset()

    def configurations(self, isa: Isa) -> tuple[str, ...]:
        """Torch's, ours without measurement, and traces; none where all have rows, as few can be drawn."""
        traces = drawn(unscheduled(self.group, "drawn"), target_of(processor_for(isa)), self.trials)
        found = (TORCH, FUSED, *traces)
        return () if self.measured.issuperset(found) else found


def jobs(groups: Sequence[Group], rows: Sequence[Row], core: Core, trials: int) -> list[Job]:
    """What may be left to measure: groups with fewer rows of these versions than configurations."""
    measured: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.core == core and is_of(row, versions()):
            measured[row.workload].add(row.configuration)
    known = [(group, frozenset(measured[workload(group)])) for group in groups]
    return [Job(group=group, trials=trials, measured=have) for group, have in known if len(have) < trials + 2]


class Bench:
    """The configurations of one group by number, ready to run; `refused`: why LLVM does not take others."""

    def __init__(
        self, group: Group, configurations: Sequence[str], isa: Isa,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.values = numbers_for(group)
        torch_steps: tuple[Host, ...] = tuple(Compute(node=node) for node in group.nodes)
        self.steps: dict[int, tuple[Host, ...]] = {}
        self.refused: dict[int, str] = {}
        functions: dict[str, Any] = {}
        for i, configuration in enumerate(configurations):
            name = f"float_{i}"
            if configuration == TORCH:
                self.steps[i] = torch_steps
                continue
            try:
                module = compiled([made(group, configuration, name)], processor_for(isa))
            except (TuningError, *REFUSALS) as error:  # a schedule may be valid and have no code
                self.refused[i] = said_last(error)
                continue
            functions[name] = module[name]
            self.steps[i] = (Floats(group=group, function=name),)
        self.state = State(
            functions=functions, arrays={}, values=dict(self.values), addresses=np.zeros(0, np.int64),
            places={},
        )  # fmt: skip
        self.repeats = {i: max(1, round(SHORTEST / self.run(i, 1))) for i in self.steps}

    def sample(self, index: int) -> float:
        return self.run(index, self.repeats[index])

    @torch.no_grad()
    def run(self, index: int, repeats: int) -> float:
        steps, state = self.steps[index], self.state
        with one_thread():  # as in programs
            begin = self.clock()
            for _ in range(repeats):
                for step in steps:
                    step.run(state)
            return max(self.clock() - begin, 1e-9) / repeats


def numbers_for(group: Group) -> dict[Node, Any]:
    """Numbers for what a group reads: those of a normal distribution; sizes are those of the results."""
    generator = torch.Generator().manual_seed(0)
    values: dict[Node, Any] = {
        node: torch.randn(group.shapes[node], generator=generator).abs() + 0.1 for node in group.inputs
    }
    for node in group.nodes:
        for size, found in zip(arguments(node).get("size") or (), group.shapes[node], strict=False):
            if isinstance(size, Node) and spec(size) is None:
                values[size] = found
    return values


def tune(
    waiting: Sequence[Job],
    database: Database,
    core: Core,
    isa: Isa,
    *,
    rounds: int = ROUNDS,
    until: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
    tell: Tell = silent,
) -> int:
    """Measure jobs until `clock` shows `until`, and keep each one's rows; returns how many are left."""
    for done, job in enumerate(waiting):
        if clock() > until:
            return len(waiting) - done
        label = title(job.group)
        tell(label, done, len(waiting))
        configurations = job.configurations(isa)
        if not configurations:
            continue
        bench = Bench(job.group, configurations, isa)

        def tick(found: Measured[int], done: int = done, label: str = label) -> None:
            tell(f"{label}: best {found.median * 1e6:.1f} us", done, len(waiting))

        found = race(list(bench.steps), bench.sample, rounds=rounds, until=until, clock=clock, tick=tick)
        found += [Measured(candidate=i, seconds=(math.inf,)) for i in bench.refused]
        database.add(
            row(job.group, configurations[result.candidate], result, core, bench.refused) for result in found
        )
    return 0


def row(
    group: Group, configuration: str, found: Measured[int], core: Core, refused: Mapping[int, str]
) -> Row:
    return Row(
        workload=workload(group), configuration=configuration, isa=core.isa, processor=core.processor,
        seconds=found.median, spread=found.spread, rounds=len(found.seconds),
        reason=refused.get(found.candidate, ""), **versions(),
    )  # fmt: skip


def said_last(error: Exception) -> str:
    """TVM tells where an error came from first, and at its end what it is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"it has no code: {lines[-1] if lines else type(error).__name__}"[:LONGEST]


def title(group: Group) -> str:
    """mul, add, softmax, [64, 197]"""
    names = [str(node.target).split(".")[1] for node in group.nodes]
    return f"{', '.join(names)}, {list(group.shapes[group.nodes[-1]])}"


# ---------------------------------------------------------------- what is known


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What rows say of one group: who is best, and what torch and the choice without rows take."""

    title: str
    workload: str
    calls: int
    best: str  # "torch", "tvm, rows" or "tvm, trace"
    seconds: float
    spread: float
    torch_seconds: float | None
    predicted: str
    predicted_seconds: float | None
    refused: tuple[Row, ...]


def known(groups: dict[Group, int], rows: Sequence[Row]) -> list[Tuned]:
    """The groups that have rows."""
    fastest = best(rows, versions())
    now = [row for row in rows if is_of(row, versions())]
    seconds = {(row.workload, row.configuration): row.seconds for row in now if not row.is_refused}
    found = []
    for group, calls in groups.items():
        name, guess = workload(group), by_rule(group)
        if name in fastest:
            held = fastest[name]
            configuration = held.configuration
            found.append(Tuned(
                title=title(group), workload=name, calls=calls, seconds=held.seconds, spread=held.spread,
                best=configuration if configuration in (TORCH, FUSED) else "tvm, trace",
                torch_seconds=seconds.get((name, TORCH)), predicted=guess,
                predicted_seconds=seconds.get((name, guess)),
                refused=tuple(row for row in now if row.is_refused and row.workload == name),
            ))  # fmt: skip
    return found
