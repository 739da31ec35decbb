"""What a model of parts on either engine could gain at most: layer by layer, the faster of both, for nothing.

    python -m benchmarks.mixed [--models ...] [--out benchmarks/results/mixed.json]

    bound(k) = sum over runs of k layers of min(ours, ONNX Runtime's), beside ours alone

Both engines run the same model; what is computed between two planned layers counts with the one before it. To
go from one engine to the other costs nothing here, though in truth codes are turned to another layout and a
call begins, so what is gained is less. One layer alone flatters: a sum that is in the epilogue of a
convolution there is a node of its own here. One thread, medians. Writes JSON and Markdown.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import qcompiler as qc
from benchmarks.models import CASES
from benchmarks.records import commit, machine, table, versions, write_down
from qcompiler.backends.base import Engine
from qcompiler.ir import flatten_inputs
from qcompiler.models import build

ENGINES = ("tvm", "ort")
RUNS = (1, 4)  # layers that would go to one engine together
FIRST = "before the first layer"


def by_layer(profile: Mapping[str, float], layers: Mapping[str, str]) -> dict[str, float]:
    """Microseconds of every planned layer, with what follows it up to the next."""
    found: dict[str, float] = defaultdict(float)
    layer = FIRST
    for node, us in profile.items():
        layer = layers.get(node, layer)
        found[layer] += us
    return found


def at_best(ours: Mapping[str, float], theirs: Mapping[str, float], run: int) -> float:
    """Microseconds if every run of so many layers were computed by the faster engine."""
    layers = [layer for layer in ours if layer in theirs]
    common = [layers[start : start + run] for start in range(0, len(layers), run)]
    alone = sum(us for layer, us in ours.items() if layer not in theirs)
    return alone + sum(min(sum(us[layer] for layer in part) for us in (ours, theirs)) for part in common)


def measure(name: str, batch: int) -> dict[str, Any]:
    bundle = build(name)
    inputs = tuple(torch.cat([x] * batch) for x in bundle.example_inputs)
    found = {}
    for engine in ENGINES:
        compiled = qc.compile(
            bundle.module, inputs, calibration=bundle.calibration, backend=engine, threads=1, progress=False
        )
        executable = compiled.executable
        assert isinstance(executable, Engine)
        layers = {layer.node: layer.label for layer in compiled.plan.layers if layer.precision != "float"}
        found[engine] = by_layer(executable.profile(flatten_inputs(compiled.graph, inputs, {})), layers)
    ours, theirs = found["tvm"], found["ort"]
    return {
        "model": name, "batch": batch, "layers": len(ours.keys() & theirs.keys()),
        "ours_us": sum(ours.values()), "onnxruntime_us": sum(theirs.values()),
        "bounds_us": {str(run): at_best(ours, theirs, run) for run in RUNS}, "by_layer": found,
    }  # fmt: skip


def page(result: Mapping[str, Any]) -> str:
    columns: Sequence[str] = (
        "model", "batch", "layers in common", "ours ms", "ONNX Runtime ms",
        *(f"less at best, {run} at a time" for run in RUNS),
    )  # fmt: skip
    rows = [
        (case["model"], str(case["batch"]), str(case["layers"]), f"{case['ours_us'] / 1e3:.2f}",
         f"{case['onnxruntime_us'] / 1e3:.2f}",
         *(f"{1 - case['bounds_us'][str(run)] / case['ours_us']:.1%}" for run in RUNS))
        for case in result["cases"]
    ]  # fmt: skip
    cpu = result["machine"]
    return (
        f"{cpu['cpu']} ({', '.join(cpu['features'])}), commit {result['commit']}.\n\n{table(columns, rows)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[name for name, _ in CASES])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mixed.json"))
    given = parser.parse_args()
    at = commit()
    torch.set_num_threads(1)
    cases = [(name, batch) for name, batch in CASES if name in given.models]
    result = {
        "commit": at, "machine": machine(), "versions": versions(("torch", "apache-tvm", "onnxruntime")),
        "cases": [measure(name, batch) for name, batch in track(cases, description="models")],
    }  # fmt: skip
    write_down(result, page(result), given.out)


if __name__ == "__main__":
    main()
