"""Instruction sets: how near each comes to its own peak, on the CPU that has them.

    python -m benchmarks.sets [--rounds 15] [--out benchmarks/results/sets.json]

A product of matrices and a convolution with requantization, each with the tile that a set gets without
measurement, and the peak: dot products of registers alone, where one is a single instruction (LLVM would
compute a sum of several once for all turns). One thread, all interleaved, CPU time, medians. Writes JSON and
Markdown.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from tvm import tirx

from benchmarks.records import commit, machine, table, versions, write_down
from qcompiler.backends.tvm.build import compiled, handed, placed, processor_for
from qcompiler.backends.tvm.builder import splat
from qcompiler.backends.tvm.isa import Isa, runnable
from qcompiler.backends.tvm.kernels.conv import LINE, Convolution, convolution, pack
from qcompiler.backends.tvm.peak import chains, operations
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.schedules import predicted
from qcompiler.target.machine import this_cpu
from qcompiler.tune.measure import interleave

LAYERS: Mapping[str, Convolution] = {
    "512 x 768 by 768 x 768": Convolution(
        x=Plane(images=1, height=1, width=512, channels=768, pitch=768),
        y=Plane(images=1, height=1, width=512, channels=768, pitch=768),
    ),
    "3x3, 28x28, 128 to 128": Convolution(
        x=Plane(images=1, height=28, width=28, channels=128, pitch=128, border=1),
        y=Plane(images=1, height=28, width=28, channels=128, pitch=128),
        kernel=(3, 3), padding=(1, 1),
    ),
}  # fmt: skip
TURNS = 4096
SUMS = 12  # enough to hide the latency of every set, and few enough for 16 registers
RNG = np.random.default_rng(0)
Run = Callable[[], object]


def run_of(layer: Convolution, isa: Isa) -> Run:
    outputs, inputs = layer.y.channels, layer.x.channels
    codes = RNG.integers(-127, 128, (outputs, inputs, *layer.kernel)).astype(np.int8)
    arrays: list[Any] = [
        RNG.integers(0, 256, layer.x.size, np.uint8),
        np.concatenate([pack(layer, codes, isa).reshape(-1), np.zeros(LINE, np.int8)]),
        np.zeros(outputs, np.int32), np.full(outputs, 1e-4, np.float32), np.zeros(layer.y.size, np.uint8),
    ]  # fmt: skip
    made = convolution(layer, predicted(layer, isa), isa, "layer")
    return partial(compiled([made], processor_for(isa))["layer"], *map(handed, map(placed, arrays)))


def peak_of(isa: Isa) -> Run | None:
    """Dot products of registers, where one is an instruction."""
    if isinstance(isa.dot(*(splat(0, kind, size) for kind, size in operands(isa))), tirx.Add):
        return None
    return chains(isa, SUMS, TURNS)


def operands(isa: Isa) -> tuple[tuple[str, int], ...]:
    return ("int32", isa.lanes), ("uint8", isa.bytes), ("int8", isa.bytes)


def measured(isa: Isa, rounds: int) -> dict[str, Any]:
    """10^9 operations per second; a product and a sum are two."""
    peak = peak_of(isa)
    runs = {name: run_of(layer, isa) for name, layer in LAYERS.items()}
    runs |= {"peak": peak} if peak is not None else {}
    timing = interleave(runs, rounds=rounds, clock=time.thread_time)
    products = {name: layer.products for name, layer in LAYERS.items()}
    products["peak"] = operations(isa, SUMS, TURNS) // 2
    speeds = {name: 2 * products[name] / timing.median(name) / 1e9 for name in runs}
    of_peak = {name: speed / speeds["peak"] for name, speed in speeds.items()} if peak is not None else {}
    return {"set": isa.name, "gops": speeds, "of_peak": of_peak}


def page(cases: list[dict[str, Any]]) -> str:
    def figure(case: dict[str, Any], name: str) -> str:
        share = f", {case['of_peak'][name]:.0%}" if case["of_peak"] else ""
        return f"{case['gops'][name]:.0f} GOP/s{share}"

    lines = []
    for case in cases:
        peak = f"{case['gops']['peak']:.0f} GOP/s" if case["of_peak"] else "–"
        lines.append((case["set"], peak, *(figure(case, name) for name in LAYERS)))
    return table(("set", "peak", *LAYERS), lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sets.json"))
    given = parser.parse_args()
    at = commit()
    cases = [measured(isa, given.rounds) for isa in track(runnable(this_cpu().features))]
    data = {"commit": at, **machine(), "versions": versions(("apache-tvm",)), "cases": cases}
    write_down(data, page(cases), given.out)


if __name__ == "__main__":
    main()
