"""Fusions of our own kernels: two ops in one kernel, and in two, beside what the target's costs say.

    python -m benchmarks.fusions [--rounds N] [--out benchmarks/results/fusions.json]

`behind` is the kernel of both less the kernel of the first alone, `pass` the second in a kernel of its own.
They may be a hundredth of the first, so rounds are many and short, and each kernel counts with the least time
of all. Thread time, interleaved, activations near; it wants a quiet machine. Writes JSON and Markdown.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.records import commit, machine, table, versions, write_down
from qcompiler.backends.tvm.build import compiled, handed, placed, processor_for
from qcompiler.backends.tvm.isa import Isa, isa_for
from qcompiler.backends.tvm.kernels import add
from qcompiler.backends.tvm.kernels.conv import Convolution, convolution
from qcompiler.backends.tvm.kernels.norm import Norm, encode_rows, norm
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.schedules import predicted
from qcompiler.target.cpu_tvm import COSTS
from qcompiler.target.machine import this_cpu
from qcompiler.tune.measure import timed


@dataclass(frozen=True, kw_only=True)
class Case:
    """The functions of the first op, of both, and of the second, in this order and under these names."""

    kind: str
    layer: str
    results: int
    functions: tuple[Any, Any, Any]


NAMES = ("first", "both", "second")
SHORTEST = 5e-4  # seconds of a round


def plane(height: int, width: int, channels: int, border: int = 0) -> Plane:
    return Plane(
        images=1, height=height, width=width, channels=channels, pitch=channels, border=border
    )  # fmt: skip


def convolutions(isa: Isa) -> Iterator[Case]:
    """A table and a residual behind products; rows are images of one line."""
    shapes = (
        (7, 7, 512, 512, 3), (14, 14, 256, 256, 3), (56, 56, 64, 64, 3), (56, 56, 64, 256, 1),
        (14, 14, 384, 64, 1), (1, 128, 768, 3072, 1), (1, 50, 768, 3072, 1), (1, 1, 768, 3072, 1),
    )  # fmt: skip
    for h, w, inputs, outputs, kernel in shapes:
        x, y = plane(h, w, inputs, kernel // 2), plane(h, w, outputs)
        alone = Convolution(x=x, y=y, kernel=(kernel, kernel), padding=(kernel // 2, kernel // 2))
        tile, (first, both, second) = predicted(alone, isa), NAMES
        seconds = {
            "table": (replace(alone, table=True), add.table(y, y, isa, second)),
            "sum of codes": (replace(alone, residual=y), add.add(add.Pair(a=y, b=y, y=y), isa, second)),
        }
        for kind, (together, behind) in seconds.items():
            yield Case(
                kind=kind, layer=f"{inputs} to {outputs}, {kernel}x{kernel}, {h} x {w}",
                results=h * w * outputs,
                functions=(
                    convolution(alone, tile, isa, first), convolution(together, tile, isa, both), behind,
                ),
            )  # fmt: skip


def norms(isa: Isa) -> Iterator[Case]:
    for count, width in ((128, 768), (50, 768), (1, 64)):
        x = plane(1, count, width)
        yield Case(
            kind="codes", layer=f"{count} rows of {width}", results=count * width,
            functions=(
                norm(Norm(x=x, floats=x), isa, NAMES[0]), norm(Norm(x=x, floats=x, codes=x), isa, NAMES[1]),
                encode_rows(x, x, isa, NAMES[2]),
            ),
        )  # fmt: skip


def measured(case: Case, isa: Isa, rounds: int) -> dict[str, Any]:
    module = compiled(case.functions, processor_for(isa))
    runs = [runner(module[name], made) for name, made in zip(NAMES, case.functions, strict=True)]
    first, both, second = least(runs, rounds)
    ways = COSTS.behind[case.kind]
    return {
        "kind": case.kind, "layer": case.layer, "results": case.results, "first_us": first,
        "behind_us": both - first, "pass_us": second,
        "behind_on_paper_us": ways.fused.us(case.results, COSTS.bandwidth),
        "pass_on_paper_us": ways.apart.us(case.results, COSTS.bandwidth),
    }  # fmt: skip


def least(runs: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Microseconds of one call of each, the least of all rounds."""
    repeats = [max(1, round(SHORTEST / max(timed(run, 3, time.thread_time), 1e-7))) for run in runs]
    found = [float("inf")] * len(runs)
    for _ in range(rounds):
        for i, run in enumerate(runs):
            found[i] = min(found[i], timed(run, repeats[i], time.thread_time) * 1e6)
    return found


def runner(function: Any, made: Any) -> Callable[[], object]:
    """A function on memory of its own."""
    arrays = [
        np.full(int(p.shape[0]), 1e-3, np.float32) if str(p.dtype) == "float32"
        else (np.arange(int(p.shape[0])) % 101).astype(str(p.dtype))
        for p in made.params
    ]  # fmt: skip
    given = [handed(placed(array)) for array in arrays]
    return lambda: function(*given)


def page(cases: list[dict[str, Any]]) -> str:
    lines = [
        (case["kind"], case["layer"],
         *(f"{case[name]:.1f} µs" for name in ("first_us", "behind_us", "behind_on_paper_us", "pass_us",
                                               "pass_on_paper_us")))
        for case in sorted(cases, key=lambda case: case["kind"])
    ]  # fmt: skip
    return table(("fusion", "layer", "first", "behind", "on paper", "pass", "on paper"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fusions.json"))
    given = parser.parse_args()
    at, isa = commit(), isa_for(this_cpu().features)
    if isa is None or isa.lookup is None:
        raise SystemExit("this CPU has no such kernels")
    cases = [measured(case, isa, given.rounds) for case in track([*convolutions(isa), *norms(isa)])]
    data = {"commit": at, **machine(), "versions": versions(("apache-tvm",)), "cases": cases}
    write_down(data, page(cases), given.out)


if __name__ == "__main__":
    main()
