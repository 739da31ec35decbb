"""What the arithmetic units give: dot products on registers, and nothing else."""

import time
from collections.abc import Callable
from functools import cache, partial

import numpy as np

from qcompiler.backends.tvm.build import compiled, handed, placed, processor_for
from qcompiler.backends.tvm.builder import Builder
from qcompiler.backends.tvm.isa import Isa

TURNS, RUNS = 20_000, 12


def chains(isa: Isa, count: int, turns: int = TURNS) -> Callable[[], object]:
    """A call that makes `turns` dot products of a register in each of `count` sums, one behind the other.

    With one sum it takes the latency of the instruction; with enough of them, all that the units give.
    """
    k = Builder("chains")
    codes, weights = k.argument("codes", "uint8", isa.bytes), k.argument("weights", "int8", isa.bytes)
    results = k.argument("results", "int32", count * isa.lanes)
    spread = k.keep(isa.spread(codes, 0), "uint8", isa.bytes)
    held = k.keep(isa.panel(weights, 0), "int8", isa.bytes)
    sums = [k.register("int32", isa.lanes) for _ in range(count)]
    for i, register in enumerate(sums):
        k.store(register, 0, k.load(results, i * isa.lanes, isa.lanes), isa.lanes)
    with k.loop(turns):
        for register in sums:
            k.store(register, 0, isa.dot(k.load(register, 0, isa.lanes), spread, held), isa.lanes)
    for i, register in enumerate(sums):
        k.store(results, i * isa.lanes, k.load(register, 0, isa.lanes), isa.lanes)
    sizes = {"uint8": isa.bytes, "int8": isa.bytes, "int32": count * isa.lanes}
    arrays = [placed(np.ones(size, dtype)) for dtype, size in sizes.items()]
    function = compiled([k.function()], processor_for(isa))["chains"]
    return partial(function, *map(handed, arrays))


def operations(isa: Isa, count: int, turns: int = TURNS) -> int:
    """Of one call; a product and a sum are two."""
    return 2 * isa.bytes * count * turns


@cache
def peak(isa: Isa) -> float:
    """Operations per second of one core."""
    count = min(4 * isa.latency, isa.registers)
    call, fastest = chains(isa, count), float("inf")
    for _ in range(RUNS):
        begin = time.thread_time()
        call()
        fastest = min(fastest, time.thread_time() - begin)
    return operations(isa, count) / fastest
