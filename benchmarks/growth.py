"""What a process grows by in one training step, beside what the simulation says.

    python -m benchmarks.growth [--models ...] [--out benchmarks/results/growth.json]
    python -m benchmarks.growth --case resnet18 act4 4

A process of its own for each case, since memory that an earlier step left is used again. The model is
compiled and makes a step, gradients are given back to the system, and a second step is measured: the highest
of the resident memory over it, by the system's own count, over what it was before. The allocator keeps
nothing of 16 KiB or more back. Bytes do not depend on how busy the machine is. Writes JSON and Markdown.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.records import commit, machine, table, versions, write_down
from benchmarks.subjects import subject
from qcompiler.training import Training

MODELS = {"block": 32, "resnet18": 16, "vit_b_32": 4, "bert_base": 2}  # and rows of a batch
MEMORIES = ("keep", "act8", "act4")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384", "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}  # fmt: skip


def grown(name: str, memory: str, rows: int) -> dict[str, Any]:
    """The figures of one case, from a process of its own."""
    case = [sys.executable, "-m", "benchmarks.growth", "--case", name, memory, str(rows)]
    done = subprocess.run(case, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, memory: str, rows: int) -> dict[str, Any]:
    """Bytes of one case, in this process."""
    model, inputs = subject(name, rows)
    training = Training(memory=memory, verify=False)
    run = torch.compile(model, backend=training, fullgraph=True, dynamic=False)

    def step() -> None:
        results = [x for x in pytree.tree_leaves(run(*inputs)) if isinstance(x, Tensor) and x.requires_grad]
        loss = torch.stack([x.square().mean() for x in results]).sum()
        torch.autograd.backward(loss)

    step()
    model.zero_grad()
    process = highest(step)
    (piece,) = training.pieces
    return {
        "model": name, "memory": memory, "rows": rows, "process": process, "simulated": piece.after.bytes,
        "at": piece.after.at, "left": piece.after.left, "crossing": piece.after.crossing,
    }  # fmt: skip


def highest(step: Callable[[], object]) -> int:
    """Bytes by which this process grew at its highest over one call."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # forget the highest so far
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def page(result: dict[str, Any]) -> str:
    bytes_ = ("crossing", "left", "simulated", "process")
    rows = [
        (case["model"], str(case["rows"]), case["memory"], *(f"{case[name] / 1e6:.1f} MB" for name in bytes_),
         f"{case['process'] / case['simulated']:.3f}")
        for case in result["cases"]
    ]  # fmt: skip
    columns = (
        "model", "rows", "memory", "crosses", "results and gradients", "simulated peak", "process grew by",
        "ratio",
    )  # fmt: skip
    return table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[*MODELS])
    parser.add_argument("--case", nargs=3, metavar=("MODEL", "MEMORY", "ROWS"), help="one, in this process")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/growth.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.case:
        name, memory, rows = given.case
        print(json.dumps(measure(name, memory, int(rows))))
        return
    if not STATUS.exists():
        parser.error("this system does not tell how far a process grew")
    at = commit()
    cases = [grown(name, memory, MODELS[name]) for name in track(given.models) for memory in MEMORIES]
    result = {"commit": at, **machine(), "versions": versions(("torch",)), "cases": cases}
    write_down(result, page(result), given.out)


if __name__ == "__main__":
    main()
