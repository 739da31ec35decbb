"""qcompiler beside its peers on a CPU: speed, SQNR, size, memory, time to be ready.

    python -m benchmarks.cpu [--models NAME ...] [--peers NAME ...] [--rounds 12]
        [--work FOLDER] [--out FILE]

Every contender lives in a process of its own, pinned to the same core (or cores, with a thread for each).
All of a workload are made ready first, then run in interleaved rounds in rotating order, and each is compared
with ONNX Runtime float within a round.
Peers that are not installed are listed as such; one that fails is a row with its reason. What was prepared
stays in the work folder, and is used again as long as nothing changes that it was made of. Run on a quiet
machine.
"""

import argparse
import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.cells import to_mapping
from benchmarks.contenders import BASELINE, CONTENDERS
from benchmarks.field import Settings, measure
from benchmarks.page import legend, overview, page, setting
from benchmarks.plot import draw
from benchmarks.records import commit, machine, versions
from benchmarks.workloads import WORKLOADS
from qcompiler.steps import Steps

VERSIONED = ("qcompiler", "torch", "onnx", "onnxruntime", "openvino", "nncf", "torchao")


def circumstances(given: argparse.Namespace) -> dict[str, Any]:
    """What the JSON file holds besides the cells, as it is before the first is measured."""
    return {
        "commit": commit(),
        "machine": machine() | {"load": os.getloadavg()[0], "cores": os.cpu_count()},
        "versions": versions(VERSIONED),
        "protocol": {
            "rounds": given.rounds,
            "slice_s": given.slice,
            "threads": len(given.core),
            "baseline": BASELINE,
        },
        "workloads": {
            name: {"title": WORKLOADS[name].title, "floor_db": WORKLOADS[name].floor_db}
            for name in given.models
        },
        "contenders": {
            name: {"title": contender.title, "bits": contender.bits, "ours": contender.ours}
            for name, contender in CONTENDERS.items()
        },
    }


def write(result: dict[str, Any], out: Path) -> None:
    """The JSON file, and beside it the page and the pictures."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    read = json.loads(out.read_text())
    out.with_suffix(".md").write_text(page(read))
    for format in (".svg", ".png"):
        draw(read, out.with_suffix(format))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=[*WORKLOADS], default=[*WORKLOADS], metavar="NAME")
    parser.add_argument("--peers", nargs="+", choices=[*CONTENDERS], default=[*CONTENDERS], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--slice", type=float, default=0.4, help="seconds of a contender per round, at least")
    parser.add_argument(
        "--core", type=int, nargs="+", default=[0], help="the cores of every contender, a thread for each"
    )
    parser.add_argument("--work", type=Path, help="where prepared models stay; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu.json"))
    return parser.parse_args()


def main() -> None:
    given = options()
    names = [name for name in CONTENDERS if name in given.peers or name == BASELINE]
    known, cells = circumstances(given), list[dict[str, Any]]()
    with ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qcompiler-")))
        settings = Settings(rounds=given.rounds, slice=given.slice, cores=tuple(given.core), work=work)
        for workload in given.models:
            with Steps(visible=True) as steps:
                cells += map(to_mapping, measure(workload, names, settings, steps.tell))
            # After every workload: what is measured is not lost if the rest is stopped.
            write(known | {"cells": cells}, given.out)
    found = json.loads(given.out.read_text())
    print(setting(found), overview(found), legend(found), sep="\n")


if __name__ == "__main__":
    main()
