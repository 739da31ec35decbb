"""Ways to round weights of four bits, on a small language model trained here: perplexity on held-out text.

    python -m benchmarks.weights [--seeds 0 1 2] [--out benchmarks/results/weights.json]

Trains one model per seed (about a minute each), then decides every recipe and runs the quantized graph with
Q/DQ in place. Writes JSON and a Markdown table: perplexity lost in percent, seed by seed; bits per weight and
its share of scale and zero point; SQNR of the layers' outputs, median over layers; seconds to decide.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks.records import commit, machine, table, versions
from qcompiler.ir import Graph, evaluate
from qcompiler.job import take
from qcompiler.models.bundle import Bundle
from qcompiler.models.charlm import bundle, corpus, train
from qcompiler.numerics import parse_format
from qcompiler.passes.decide import Decision, decide
from qcompiler.progress import silent
from qcompiler.proof import quantized
from qcompiler.recipe import WEIGHT_METHODS, find_recipe
from qcompiler.target import find_target

# Format and group.
GRIDS = (("int4", 32), ("int4", 64), ("uint4", 32))
SCALE_BITS = 32
SAMPLES = 256


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "int8, per channel, nearest", {"base": "w8a16"}
    for weights, group in GRIDS:
        grid = {"base": "w4a16", "weights": weights, "group_size": group}
        yield (
            f"{weights}, groups of {group}, nearest (minmax)",
            grid | {"weight_method": "nearest", "weight_observer": "minmax"},
        )
        for method in WEIGHT_METHODS:
            ranges = " (mse)" if method == "nearest" else ""
            yield f"{weights}, groups of {group}, {method}{ranges}", grid | {"weight_method": method}


def measure(graph: Graph, subject: Bundle, recipe: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    decision = decide(graph, subject.calibration, find_recipe(recipe), find_target("cpu"))
    seconds = time.perf_counter() - started
    coded = quantized(decision)
    return {
        "recipe": recipe,
        "seconds": seconds,
        "bits": bits(decision),
        "perplexity": subject.metric(lambda tokens: evaluate(coded, [tokens]))["perplexity"],
        "layer_sqnr_db": layer_sqnr(decision),
        "notes": [str(note) for note in decision.graph.notes if note.node == "whole graph"],
    }


def bits(decision: Decision) -> float:
    """Of one weight: its code, and its share of a scale and, where the format has one, a zero point."""
    spec = decision.plan.weights[0]
    width = parse_format(spec.format).bits
    zero = width if spec.format.startswith("u") else 0
    return width + (SCALE_BITS + zero) / spec.group_size if spec.group_size else float(width)


def layer_sqnr(decision: Decision) -> float | None:
    scores = [spec.scores[spec.method] for spec in decision.plan.weights if spec.scores]
    return statistics.median(scores) if scores else None


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """One row per case; perplexity as what is lost against float, seed by seed."""
    floats = [run["perplexity"] for run in found["float"]]
    lines = []
    for name, runs in found.items():
        if name == "float":
            continue
        lost = ", ".join(
            f"{100 * (run['perplexity'] / x - 1):+.2f} %" for run, x in zip(runs, floats, strict=True)
        )
        quality = runs[0]["layer_sqnr_db"]
        judged = "" if quality is None else f"{quality:.1f}"
        lines.append((name, f"{runs[0]['bits']:g}", lost, judged, f"{runs[0]['seconds']:.1f}"))
    head = f"Float perplexity: {', '.join(f'{x:.3f}' for x in floats)}.\n\n"
    return head + table(("weights", "bits", "perplexity lost", "layers, dB", "s"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/weights.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    at = commit()
    text, found = corpus(), dict[str, list[dict[str, Any]]]()
    for seed in given.seeds:
        model = train(text.train, seed=seed, steps=given.steps, progress=track)
        subject = bundle(model, text, samples=SAMPLES)
        graph = take(subject.module, subject.example_inputs, subject.calibration, silent).original
        found.setdefault("float", []).append(subject.metric(subject.module))
        for name, recipe in track(list(cases()), f"measuring {seed}"):
            found.setdefault(name, []).append(measure(graph, subject, recipe))
    record = {
        "commit": at, **machine(), "versions": versions(["torch"]),
        "seeds": given.seeds, "steps": given.steps, "cases": found,
    }  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
