"""Seconds of kernels on this machine: compiled side by side, run on the same memory, in thread time.

A bench holds the candidates of one layer; `sample(i)` runs one of them over all copies of the weights, and
says what one call took.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from qcompiler.backends.tvm.build import compiled, handed, placed, processor_for
from qcompiler.backends.tvm.builder import Builder
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.probe import Argument, arguments_of, probe, turns
from qcompiler.backends.tvm.schedules import template_of

SHORTEST = 2e-3  # seconds of a sample, so that the clock and the call do not count


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
        self.repeats = max(1, round(SHORTEST / (first * self.turns)))

    def sample(self, index: int) -> float:
        """Seconds of one call of a candidate, its weights far."""
        return self.run(index, self.repeats)

    def run(self, index: int, repeats: int) -> float:
        function = self.probes[index]
        begin = self.clock()
        for _ in range(repeats):
            function(*self.handles)
        return max(self.clock() - begin, 1e-9) / (repeats * self.turns)


PEAK_TURNS, PEAK_RUNS = 20_000, 12


@cache
def peak(isa: Isa) -> float:
    """Operations per second of one core that does nothing but dot products on registers."""
    k = Builder("peak")
    codes, sums = k.argument("codes", "uint8", isa.bytes), k.argument("sums", "int32", isa.lanes)
    weights = k.argument("weights", "int8", isa.bytes)
    held = k.keep(isa.panel(weights, 0), "int8", isa.bytes)
    registers = [k.register("int32", isa.lanes) for _ in range(4 * isa.latency)]
    for register in registers:
        k.store(register, 0, k.load(sums, 0, isa.lanes), isa.lanes)
    with k.loop(PEAK_TURNS):
        spread = k.bind(isa.spread(codes, 0))
        for register in registers:
            k.store(register, 0, isa.dot(k.load(register, 0, isa.lanes), spread, held), isa.lanes)
    total = k.load(registers[0], 0, isa.lanes)
    for register in registers[1:]:
        total = total + k.load(register, 0, isa.lanes)
    k.store(sums, 0, total, isa.lanes)
    function = compiled([k.function()], processor_for(isa))["peak"]
    sizes = {"uint8": isa.bytes, "int32": isa.lanes, "int8": isa.bytes}
    handles = [handed(placed(np.ones(size, dtype))) for dtype, size in sizes.items()]
    fastest = float("inf")
    for _ in range(PEAK_RUNS):
        begin = time.thread_time()
        function(*handles)
        fastest = min(fastest, time.thread_time() - begin)
    return 2 * isa.bytes * len(registers) * PEAK_TURNS / fastest
