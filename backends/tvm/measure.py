"""Seconds of kernels on this machine: compiled side by side, run on the same memory, in thread time.

A bench holds the candidates of one layer; `sample(i)` runs one of them over all copies of the weights, and
says what one call took.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from qcompiler.backends.tvm.build import compiled, handed, placed, processor_for
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.probe import Argument, arguments_of, probe, turns
from qcompiler.backends.tvm.schedules import template_of

SHORTEST = 2e-3  # seconds of a sample, so that the clock and the call do not count
MOST_REPEATS = 100  # of 64 calls, whatever a coarse clock said of the first


def functions_of(layer: Any, schedules: Sequence[Any], isa: Isa) -> tuple[list[Any], list[Argument]]:
    """Kernel and probe of every schedule (kernel_0, probe_0, kernel_1, ..), and what all of them take."""
    template, found = template_of(layer), []
    for i, schedule in enumerate(schedules):
        kernel = template.build(layer, schedule, isa, f"kernel_{i}")
        given = arguments_of(kernel, template.products(layer))
        found += [kernel, probe(kernel, given, f"probe_{i}")]
    return found, given


class LocalBench:
    """The candidates of one layer, ready to run here."""

    def __init__(
        self, layer: Any, schedules: Sequence[Any], isa: Isa, clock: Callable[[], float] = time.thread_time
    ) -> None:
        functions, given = functions_of(layer, schedules, isa)
        module = compiled(functions, processor_for(isa))
        self.handles = [handed(placed(a.fresh())) for a in given]
        self.probes = [module[f"probe_{i}"] for i in range(len(schedules))]
        self.turns, self.clock = turns(given), clock
        first = self.run(0, 1)
        self.repeats = max(1, min(MOST_REPEATS, round(SHORTEST / (first * self.turns))))

    def sample(self, index: int) -> float:
        """Seconds of one call of a candidate, its weights far."""
        return self.run(index, self.repeats)

    def run(self, index: int, repeats: int) -> float:
        function = self.probes[index]
        begin = self.clock()
        for _ in range(repeats):
            function(*self.handles)
        return max(self.clock() - begin, 1e-9) / (repeats * self.turns)
