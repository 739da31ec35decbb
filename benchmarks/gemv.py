"""Linears with int4 weights in groups of 128, one row: how near to the memory's own speed they are read.

    python -m benchmarks.gemv [--rounds 15] [--out benchmarks/results/gemv.json]

Kernels of our own with constants in pages of 2 MiB and of 4 KiB, and ONNX Runtime's MatMulNBits (accuracy
level 4). Every shape has as many copies of its weights as exceed the caches, so that each is read from
memory; all contenders interleaved in one process on one thread, CPU time per linear, medians. Ours includes
the rounding of the inputs, and a call from Python for each of both functions; MatMulNBits is called once for
all copies. The stream is a sum over 96 MiB, without any other work. Writes JSON and Markdown.
"""

import argparse
import mmap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper
from rich.progress import track

from benchmarks.kernels import OWN, session
from benchmarks.records import commit, machine, table, versions, write_down
from qcompiler.backends.tvm.build import compiled, handed, placed, processor_for
from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa, isa_for
from qcompiler.backends.tvm.kernels.gemv import Gemv, by_register, gemv, pack
from qcompiler.backends.tvm.kernels.rounding import rounded
from qcompiler.backends.tvm.pages import arranged
from qcompiler.backends.tvm.plane import Plane
from qcompiler.target.machine import this_cpu
from qcompiler.tune.measure import interleave

SHAPES = ((768, 2304), (768, 768), (768, 4096), (2048, 768), (768, 32000))  # of a decoder of 134 M parameters
GROUP = 128
COLD = 96 << 20  # bytes, three times the last cache of the machines that were measured
LARGE, SMALL, PEER, STREAM = "ours, 2 MiB pages", "ours, 4 KiB pages", "MatMulNBits", "stream"
RNG = np.random.default_rng(0)
Run = Callable[[], object]


def in_small_pages(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Each in memory of its own that nobody asks large pages for, as numpy does for large arrays."""
    found = {}
    for name, array in arrays.items():
        found[name] = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype)
        found[name][:] = array.reshape(-1)
    return found


def ours(isa: Isa, inputs: int, outputs: int, copies: int) -> dict[str, Run]:
    x, y = (Plane(images=1, height=1, width=1, channels=n, pitch=n) for n in (inputs, outputs))
    layer = Gemv(x=x, y=y, bits=4, block=GROUP, zero=8)
    codes = RNG.integers(0, 16, (outputs, inputs), np.uint8)
    steps = RNG.random((outputs, layer.blocks)).astype(np.float32)
    constants = {
        f"{name}{i}": array
        for i in range(copies)
        for name, array in (("weights", pack(layer, codes, isa)), ("steps", by_register(steps, isa)))
    }
    module = compiled([rounded(layer.rounding, isa, "rounded"), gemv(layer, isa, "gemv")], processor_for(isa))
    first, second = module["rounded"], module["gemv"]
    given = handed(placed(RNG.standard_normal(x.size).astype(np.float32)))
    result = handed(placed(np.zeros(y.size, np.float32)))
    between = [handed(placed(np.zeros(plane.size, kind))) for plane, kind in layer.rounding.planes]
    between.append(handed(placed(np.array([layer.blocks], np.int32))))

    def over(handles: Mapping[str, Any]) -> Run:
        pairs = [(handles[f"weights{i}"], handles[f"steps{i}"]) for i in range(copies)]

        def run() -> None:
            for weights, scales in pairs:
                first(given, *between[:-1])
                second(*between, weights, scales, result)

        return run

    places = {LARGE: arranged(constants), SMALL: in_small_pages(constants)}
    return {
        name: over({key: handed(array) for key, array in arrays.items()}) for name, arrays in places.items()
    }


def peer(inputs: int, outputs: int, copies: int) -> Run:
    groups = inputs // GROUP
    weights = {f"w{i}": RNG.integers(0, 256, (outputs, groups, GROUP // 2), np.uint8) for i in range(copies)}
    steps = {f"s{i}": RNG.random(outputs * groups).astype(np.float32) for i in range(copies)}
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", f"w{i}", f"s{i}"], [f"y{i}" if i else "y"], domain=OWN, K=inputs, N=outputs,
            bits=4, block_size=GROUP, accuracy_level=4,
        )
        for i in range(copies)
    ]  # fmt: skip
    x = {"x": RNG.standard_normal((1, inputs)).astype(np.float32)}
    return session(nodes, {**weights, **steps}, x, [f"y{i}" for i in range(1, copies)])


def stream(isa: Isa) -> Run:
    """Read what no cache holds, once."""
    k, count, sums = Builder("stream"), COLD // 4, 8
    x, y = k.argument("x", "int32", count), k.argument("y", "int32", isa.lanes)
    registers = [k.register("int32", isa.lanes) for _ in range(sums)]
    for register in registers:
        k.store(register, 0, splat(0, "int32", isa.lanes), isa.lanes)
    with k.loop(count // isa.lanes // sums) as i:
        for j, register in enumerate(registers):
            read = k.load(x, (i * sums + j) * isa.lanes, isa.lanes)
            k.store(register, 0, k.load(register, 0, isa.lanes) + read, isa.lanes)
    total = sum(
        (k.load(register, 0, isa.lanes) for register in registers[1:]), k.load(registers[0], 0, isa.lanes)
    )
    k.store(y, 0, total, isa.lanes)
    function = compiled([k.function()], processor_for(isa))["stream"]
    given = (
        handed(arranged({"x": np.ones(count, np.int32)})["x"]),
        handed(placed(np.zeros(isa.lanes, np.int32))),
    )
    return lambda: function(*given)


def measured(isa: Isa, inputs: int, outputs: int, rounds: int) -> dict[str, Any]:
    size = outputs * inputs // 2 + outputs * inputs // GROUP * 4
    copies = max(2, COLD // size)
    runs = {**ours(isa, inputs, outputs, copies), PEER: peer(inputs, outputs, copies), STREAM: stream(isa)}
    timing = interleave(runs, rounds=rounds, clock=time.thread_time)
    per_call = {name: (COLD if name == STREAM else size * copies) for name in runs}
    return {
        "inputs": inputs, "outputs": outputs, "bytes": size, "copies": copies,
        "us": {name: timing.median(name) / copies * 1e6 for name in runs if name != STREAM},
        "gb_per_s": {name: per_call[name] / timing.median(name) / 1e9 for name in runs},
        "over_peer": {name: timing.ratio(PEER, name) for name in (LARGE, SMALL)},
        "rounds": timing.ratios(PEER, LARGE),
    }  # fmt: skip


COLUMNS = ("inputs", "outputs", LARGE, SMALL, PEER, "over MatMulNBits", "rounds", "stream", "of the stream")


def page(cases: list[dict[str, Any]]) -> str:
    def figure(case: dict[str, Any], name: str) -> str:
        return f"{case['us'][name]:.1f} µs, {case['gb_per_s'][name]:.1f} GB/s"

    lines = [
        (
            str(case["inputs"]), str(case["outputs"]), *(figure(case, name) for name in (LARGE, SMALL, PEER)),
            f"{case['over_peer'][LARGE]:.2f}x", f"{min(case['rounds']):.2f} to {max(case['rounds']):.2f}",
            f"{case['gb_per_s'][STREAM]:.1f} GB/s",
            f"{case['gb_per_s'][LARGE] / case['gb_per_s'][STREAM]:.0%}",
        )
        for case in cases
    ]  # fmt: skip
    return table(COLUMNS, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gemv.json"))
    given = parser.parse_args()
    at, isa = commit(), isa_for(this_cpu().features)
    if isa is None:
        raise SystemExit("this CPU has no kernels of our own")
    cases = [measured(isa, *shape, given.rounds) for shape in track(SHAPES)]
    data = {"commit": at, **machine(), "versions": versions(("apache-tvm", "onnxruntime")), "cases": cases}
    write_down(data, page(cases), given.out)


if __name__ == "__main__":
    main()
