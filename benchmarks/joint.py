"""Joint graphs of whole models: bytes that cross into backward, the gradient's error and bias.

    python -m benchmarks.joint [--models ...] [--draws 24] [--out benchmarks/results/joint.json]

Each model is captured whole (a graph break is an error), at act8 and act4. Forward has to be float's to the
last bit. What crosses is compared with what crosses in float, by storages. One draw's error is relative to
float's gradient; the mean of the draws is compared with what it would be without a bias. Peaks are in
`growth`. Writes JSON and Markdown.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.records import commit, machine, table, versions, write_down
from benchmarks.subjects import subject
from qcompiler.numerics.bias import measure_bias
from qcompiler.training import Training
from qcompiler.training.check import results_and_gradient, trainable

MODELS = {"block": 4, "resnet18": 4, "vit_b_32": 4, "bert_base": 2}  # and rows of a batch
MEMORIES = ("act8", "act4")


def measure(name: str, draws: int, tick: Callable[[], None]) -> list[dict[str, Any]]:
    model, inputs = subject(name, MODELS[name])
    parameters = trainable(model)
    results, exact = results_and_gradient(model, parameters, inputs, seed=0)
    found = []
    for memory in MEMORIES:
        torch._dynamo.reset()
        training = Training(memory=memory, verify=False)
        run = torch.compile(model, backend=training, fullgraph=True, dynamic=False)
        ours, _ = results_and_gradient(run, parameters, inputs, seed=0)

        def drawn(run: Callable[..., Any] = run) -> Any:
            for _ in range(draws):
                yield results_and_gradient(run, parameters, inputs, seed=0)[1]
                tick()

        bias = measure_bias(drawn(), exact)
        (piece,) = training.pieces
        found.append({
            "model": name, "rows": MODELS[name], "memory": memory,
            "exact": all(map(torch.equal, ours, results)),
            "float_bytes": piece.before.crossing, "bytes": piece.after.crossing,
            "error": bias.error, "mean": bias.bias, "floor": bias.floor, "z": bias.z,
        })  # fmt: skip
    return found


def page(result: dict[str, Any]) -> str:
    rows = [
        (case["model"], str(case["rows"]), case["memory"], "yes" if case["exact"] else "NO",
         f"{case['float_bytes'] / 1e6:.1f} -> {case['bytes'] / 1e6:.1f} MB",
         f"{case['float_bytes'] / case['bytes']:.2f}x", f"{case['error']:.4f}",
         f"{case['mean'] / case['floor']:.3f}", f"{case['z']:.1f}")
        for case in result["cases"]
    ]  # fmt: skip
    columns = (
        "model", "rows", "memory", "forward exact", "crosses", "ratio", "error of a draw",
        "mean of draws / floor", "z",
    )  # fmt: skip
    return table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[*MODELS])
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/joint.json"))
    given = parser.parse_args()
    at = commit()
    torch.set_num_threads(1)
    with Progress() as progress:
        task = progress.add_task("steps", total=len(given.models) * len(MEMORIES) * given.draws)
        cases = [
            case
            for name in given.models
            for case in measure(name, given.draws, lambda: progress.advance(task))
        ]
    result = {
        "commit": at,
        **machine(),
        "versions": versions(("torch",)),
        "draws": given.draws,
        "cases": cases,
    }
    write_down(result, page(result), given.out)


if __name__ == "__main__":
    main()
