"""Built-in models, int8 against float in ONNX Runtime: speed, SQNR, coverage and distance to the reference.

    python -m benchmarks.models [NAME ...] [--batch 1 8] [--out benchmarks/results/models.json]

One thread; float and quantized interleaved in one process, CPU time, median of per-round ratios. Writes
JSON and prints a Markdown table. Run on a quiet machine.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import qcompiler as qc
from benchmarks.records import commit, table
from qcompiler.models import build

# Model and batch size, as in the project's bars.
CASES = (
    ("lenet", 32), ("resnet18", 1), ("resnet18", 8), ("resnet50", 1), ("mobilenetv2", 1), ("vit_b_32", 1),
    ("bert_base", 1),
)  # fmt: skip
COLUMNS = (
    "model",
    "batch",
    "speed",
    "rounds",
    "SQNR dB",
    "integer layers",
    "worst node LSB",
    "output LSB",
    "same answer",
)


def measure(name: str, batch: int, recipe: str) -> dict[str, Any]:
    """One case: the figures that the compiler's own report holds."""
    module, example, calibration, metric = build(name)
    wide = tuple(torch.cat([x] * batch) for x in example)
    compiled = qc.compile(module, wide, calibration=calibration, recipe=recipe, threads=1, progress=False)
    data = compiled.report().to_dict()
    return {
        "model": name,
        "batch": batch,
        "recipe": recipe,
        "metric": metric(compiled),
        **{key: data[key] for key in ("coverage", "accuracy", "speed", "manifest")},
    }


def row(case: dict[str, Any]) -> tuple[str, ...]:
    speed, accuracy, coverage = case["speed"], case["accuracy"], case["coverage"]
    ratios = speed["ratios"]
    worst = max((node["max_lsb"] for node in accuracy["nodes"]["worst"]), default=0.0)
    return (
        case["model"],
        str(case["batch"]),
        f"{speed['ratio']:.2f}x",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{accuracy['sqnr_db']:.1f}",
        f"{coverage['executed_integer']} of {coverage['planned_integer']}",
        f"{worst:g}",
        f"{accuracy['distance']['max_lsb']:.3g} (bound {accuracy['distance']['bound_lsb']:.3g})",
        f"{accuracy['distance']['agreement']:.0%}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="built-in models; default: all cases")
    parser.add_argument("--batch", type=int, nargs="*", help="batch sizes; default: as in the table of cases")
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/models.json"))
    given = parser.parse_args()
    cases = [(name, batch) for name, batch in CASES if not given.names or name in given.names]
    if given.batch:
        cases = [(name, batch) for name in dict.fromkeys(name for name, _ in cases) for batch in given.batch]
    found = [measure(name, batch, given.recipe) for name, batch in track(cases, description="measuring")]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"commit": commit(), "cases": found}, indent=1, sort_keys=True) + "\n")
    written = table(COLUMNS, map(row, found))
    given.out.with_suffix(".md").write_text(written)
    print(written)


if __name__ == "__main__":
    main()
