"""Schedules of the built-in CNNs measured from nothing, and how far the choice on paper is from the best.

    python -m benchmarks.schedules [--models resnet50 ...] [--out benchmarks/results/schedules.json] [--ship]

`qcompiler tune` on each model, into a database of its own; a layer that an earlier model had is not measured
again. With --ship the best rows become those that come with the package for this processor. Writes JSON and
Markdown.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import commit, machine, table, versions
from qcompiler.backends.tvm import schedules
from qcompiler.tune.database import best, open_database, to_text

MODELS = ("resnet50", "resnet18", "mobilenetv2")
VERB = "from qcompiler.cli import main; main()"


def tuned(model: str, database: Path) -> dict[str, Any]:
    """What `qcompiler tune` says of a model."""
    command = [sys.executable, "-c", VERB, "tune", model, "--database", str(database), "--json", "-"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    told: dict[str, Any] = json.loads(found)
    return told


def page(models: Mapping[str, Any]) -> str:
    """One table per model, after one of all."""
    totals = [
        [name, f"{told['seconds']:.0f} s, {told['cpu_seconds']:.0f} s of the CPU",
         f"{sum(times(told, best=True)) / 1e3:.2f} ms",
         f"{sum(times(told, best=False)) / sum(times(told, best=True)):.3f}x",
         f"{max(layer['predicted_ratio'] for layer in told['layers']):.2f}x"]
        for name, told in models.items()
    ]  # fmt: skip
    parts = [table(["model", "tuning", "layers, best", "all on paper", "worst layer on paper"], totals)]
    columns = ["layer", "calls", "best", "µs", "GOP/s", "of peak", "on paper", "slower"]
    for name, told in models.items():
        rows = [
            [layer["workload"], str(layer["calls"]), layer["schedule"], f"{layer['us']:.1f}",
             f"{layer['gops']:.0f}", f"{layer['of_peak']:.0%}", layer["predicted"],
             f"{layer['predicted_ratio']:.2f}x"]
            for layer in told["layers"]
        ]  # fmt: skip
        parts.append(f"## {name}\n\n{table(columns, rows)}")
    return "\n".join(parts)


def times(told: Mapping[str, Any], *, best: bool) -> Sequence[float]:
    """Microseconds of all calls of each layer, with the best schedules or with those chosen on paper."""
    return [
        layer["us"] * layer["calls"] * (1 if best else layer["predicted_ratio"]) for layer in told["layers"]
    ]


def ship(database: Path) -> None:
    """The best row of every workload, one file per processor."""
    with open_database(database) as opened:
        rows = best(opened.rows(), schedules.versions()).values()
    for processor in {row.processor for row in rows}:
        own = [row for row in rows if row.processor == processor]
        (schedules.SHIPPED / f"{processor}.jsonl").write_text(to_text(own))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/schedules.json"))
    parser.add_argument("--ship", action="store_true")
    given = parser.parse_args()
    about = {"commit": commit(), **machine(), "versions": versions(["apache-tvm"])}
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "rows.db"
        found = {model: tuned(model, database) for model in given.models}
        if given.ship:
            ship(database)
    for told in found.values():
        del told["database"]
    given.out.write_text(json.dumps(about | {"models": found}, indent=1, sort_keys=True) + "\n")
    given.out.with_suffix(".md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
