"""Kernels of our own, each alone: how much of the machine they use, warm and as they come in a network.

    python -m benchmarks.kernels_tvm [--rounds 40] [--out benchmarks/results/kernels-tvm.json]

One thread, CPU time of a call, median of rounds. Warm: the same call again and again. Cold: weights and code
come from beyond the second cache, and planes have just been written, as by the layer before. The peak is that
of multiplications between registers, measured here too; a cycle is what one takes of a chain of them, divided
by its latency. Writes JSON and Markdown.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.records import commit, machine, table, versions, write_down
from qcompiler.backends.tvm.build import compiled, handed, host, placed
from qcompiler.backends.tvm.isa import Isa, isa_for
from qcompiler.backends.tvm.kernels.conv import Convolution, convolution
from qcompiler.backends.tvm.kernels.depthwise import Depthwise, depthwise
from qcompiler.backends.tvm.peak import TURNS, chains, operations
from qcompiler.backends.tvm.plane import Plane
from qcompiler.backends.tvm.schedules import predicted
from qcompiler.target.machine import this_cpu

FARTHER = 8 << 20  # bytes that are read to empty the second cache
CHAINS = 20  # sums that hide the latency of a multiplication
RNG = np.random.default_rng(0)


def plane(height: int, width: int, channels: int, border: int = 0) -> Plane:
    return Plane(images=1, height=height, width=width, channels=channels, pitch=channels, border=border)


def linear(rows: int, inputs: int, outputs: int) -> Convolution:
    return Convolution(x=plane(1, rows, inputs), y=plane(1, rows, outputs))


def image(size: int, inputs: int, outputs: int, kernel: int = 1, residual: bool = False) -> Convolution:
    y, padding = plane(size, size, outputs), kernel // 2
    return Convolution(
        x=plane(size, size, inputs, padding), y=y, kernel=(kernel, kernel), padding=(padding, padding),
        residual=y if residual else None,
    )  # fmt: skip


def by_channel(size: int, channels: int, stride: int) -> Depthwise:
    return Depthwise(
        x=plane(size, size, channels, 1), y=plane(size // stride, size // stride, channels), kernel=(3, 3),
        stride=(stride, stride), padding=(1, 1),
    )  # fmt: skip


LAYERS: Mapping[str, Mapping[str, Convolution | Depthwise]] = {
    "matrices of BERT-base, 128 tokens": {
        f"{inputs} to {outputs}": linear(128, inputs, outputs)
        for inputs, outputs in ((768, 768), (768, 2304), (768, 3072), (3072, 768))
    },
    "3x3 of ResNet-50": {
        f"{channels} at {size}": image(size, channels, channels, 3)
        for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7))
    },
    "1x1 with 64 inputs": {
        "64 to 64 at 56": image(56, 64, 64),
        "64 to 256 at 56": image(56, 64, 256),
        "64 to 256 at 56, residual": image(56, 64, 256, residual=True),
        "64 to 384 at 14": image(14, 64, 384),
    },
    "depthwise of MobileNetV2": {
        f"{channels} at {size}, stride {stride}": by_channel(size, channels, stride)
        for size, channels, stride in (
            (112, 32, 1), (112, 96, 2), (56, 144, 1), (56, 144, 2), (28, 192, 1), (28, 192, 2),
            (14, 384, 1), (14, 576, 1), (14, 576, 2), (7, 960, 1),
        )
    },
}  # fmt: skip


def scheduled(layer: Convolution | Depthwise, isa: Isa) -> tuple[Any, Mapping[str, Any]]:
    """The function of a layer, and the schedule that it has without measurement."""
    if isinstance(layer, Depthwise):
        patch = predicted(layer, isa)
        return depthwise(layer, patch, isa, "layer"), asdict(patch)
    tile = predicted(layer, isa)
    return convolution(layer, tile, isa, "layer"), asdict(tile)


def arguments(function: Any) -> dict[str, NDArray[Any]]:
    """Numbers for every buffer that a function takes."""
    found = {}
    for parameter in function.params:
        shape, kind = int(parameter.shape[0]), str(parameter.dtype)
        numbers = RNG.random(shape) * 1e-3 if kind == "float32" else RNG.integers(0, 100, shape)
        found[str(parameter.name)] = placed(numbers.astype(kind))
    return found


def spent(call: Callable[[], object]) -> float:
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


def measured(layer: Convolution | Depthwise, isa: Isa, rounds: int) -> dict[str, Any]:
    """Seconds of a call, warm and cold, and the schedule."""
    function, schedule = scheduled(layer, isa)
    arrays = arguments(function)
    call = partial(compiled([function], host())["layer"], *map(handed, arrays.values()))
    others = np.ones(FARTHER // 8)
    near = [arrays[name] for name in ("x", "residual", "y") if name in arrays]

    def cold() -> float:
        others.sum()
        for array in near:
            array[:] = 1
        return spent(call)

    call()
    several = max(1, round(1e-3 / spent(call)))
    warm = statistics.median(spent(lambda: [call() for _ in range(several)]) / several for _ in range(rounds))
    return {
        "schedule": dict(schedule), "warm_s": warm, "cold_s": statistics.median(cold() for _ in range(rounds))
    }  # fmt: skip


def page(found: Mapping[str, Any]) -> str:
    """One table per family: share of the peak, or cycles per register of results."""
    parts = [f"Peak {found['peak'] / 1e9:.0f} GOP/s at {found['clock'] / 1e9:.2f} GHz, {found['isa']}.\n"]
    for family, layers in found["layers"].items():
        by_cycle = "depthwise" in family
        unit = f"cycles per {found['lanes']} outputs" if by_cycle else "% of peak"
        rows = []
        for name, one in layers.items():
            shares = [
                one[kind] * found["clock"] / one["outputs"] * found["lanes"] if by_cycle
                else 200 * one["products"] / one[kind] / found["peak"] for kind in ("warm_s", "cold_s")
            ]  # fmt: skip
            size = f"{one['schedule']['rows']}x{one['schedule']['columns']}"
            figures = [f"{share:.1f}" if by_cycle else f"{share:.0f}" for share in shares]
            rows.append([name, size, *figures, f"{one['warm_s'] * 1e6:.1f}", f"{one['cold_s'] * 1e6:.1f}"])
        columns = ["layer", "tile", f"{unit}, warm", "cold", "µs, warm", "cold"]
        parts.append(f"## {family}\n\n" + table(columns, rows))
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kernels-tvm.json"))
    given = parser.parse_args()
    isa = isa_for(this_cpu().features)
    if isa is None:
        raise SystemExit("this CPU has none of the instructions that the kernels want")
    many, one = (min(spent(call) for _ in range(50)) for call in (chains(isa, CHAINS), chains(isa, 1)))
    layers: dict[str, Any] = {family: {} for family in LAYERS}
    cases = [(family, name, layer) for family, some in LAYERS.items() for name, layer in some.items()]
    for family, name, layer in track(cases, description="measuring"):
        y = layer.y
        outputs = y.images * y.height * y.width * y.channels
        products = outputs * 9 if isinstance(layer, Depthwise) else layer.products
        layers[family][name] = {
            "outputs": outputs, "products": products, **measured(layer, isa, given.rounds)
        }  # fmt: skip
    found = {
        "commit": commit(), **machine(), "versions": versions(["apache-tvm", "apache-tvm-ffi"]),
        "isa": isa.name, "lanes": isa.lanes, "clock": isa.latency * TURNS / one,
        "peak": operations(isa, CHAINS) / many, "layers": layers,
    }  # fmt: skip
    write_down(found, page(found), given.out)


if __name__ == "__main__":
    main()
