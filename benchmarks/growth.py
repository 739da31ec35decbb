"""What a process grows by in one training step, beside what the simulation says.

    python -m benchmarks.growth resnet18 act4 16

A process of its own for each case, since memory that an earlier step left is used again. The model is
compiled and makes a step, gradients are given back to the system, and a second step is measured: the highest
of the resident memory over it, by the system's own count, over what it was before. `grown` starts such a
process, with an allocator that keeps nothing of 16 KiB or more back.
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
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.subjects import subject
from qcompiler.training import Training

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384", "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}  # fmt: skip


def grown(name: str, memory: str, rows: int) -> dict[str, Any]:
    """The figures of one case, from a process of its own."""
    case = [sys.executable, "-m", "benchmarks.growth", name, memory, str(rows)]
    done = subprocess.run(case, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, memory: str, rows: int) -> dict[str, Any]:
    """Bytes; `process` is None where the system does not tell."""
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


def highest(step: Callable[[], object]) -> int | None:
    """Bytes by which this process grew at its highest over one call."""
    if not STATUS.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # forget the highest so far
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("memory")
    parser.add_argument("rows", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(given.model, given.memory, given.rows)))


if __name__ == "__main__":
    main()
