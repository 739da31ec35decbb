"""One workload on disk: what every contender starts from.

module.pt    the float module             float.onnx   the same, as torch exports it
data.pt      test inputs, the outputs that torch gives for them, calibration inputs
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.workloads import Kind, Workload
from qcompiler.models.bundle import Inputs
from qcompiler.models.metrics import Fidelity

OPSET = 20  # the newest that the quantization tools of ONNX Runtime were tried with


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a model is calibrated with, and what it is judged by; no sample is in both."""

    calibration: tuple[Inputs, ...]
    metric: Fidelity


@dataclass(frozen=True, kw_only=True)
class Case:
    """A folder that `write_case` has filled."""

    kind: Kind
    folder: Path

    @property
    def onnx(self) -> Path:
        return self.folder / "float.onnx"

    def module(self) -> nn.Module:
        # Not weights only: the file is our own, of this machine, and holds a module.
        return cast(nn.Module, torch.load(self.folder / "module.pt", weights_only=False))

    def data(self) -> Data:
        found = torch.load(self.folder / "data.pt")
        metric = Fidelity(tests=found["tests"], expected=found["expected"])
        return Data(calibration=found["calibration"], metric=metric)


@torch.no_grad()
def write_case(workload: Workload, case: Case) -> None:
    """Build the model, and write it and its data at the workload's batch size."""
    bundle = workload.build()
    tests = rotations(list(bundle.metric.inputs()), workload.batch)
    metric = Fidelity.to(bundle.module, tests)
    torch.save(bundle.module, case.folder / "module.pt")
    torch.save(
        {
            "tests": metric.tests,
            "expected": metric.expected,
            "calibration": chunks(bundle.calibration, workload.batch),
        },
        case.folder / "data.pt",
    )
    torch.onnx.export(
        bundle.module, tests[0], case.onnx, dynamo=True, opset_version=OPSET, external_data=False,
        input_names=[f"input{position}" for position in range(len(leaves(tests[0])))], verbose=False,
    )  # fmt: skip


def rotations(samples: Sequence[Inputs], batch: int) -> tuple[Inputs, ...]:
    """As many batches as samples:  s0 s1 s2,  s1 s2 s0,  s2 s0 s1"""
    count = len(samples)
    return tuple(joined([samples[(i + j) % count] for j in range(batch)]) for i in range(count))


def chunks(samples: Sequence[Inputs], batch: int) -> tuple[Inputs, ...]:
    """Every sample once:  s0 s1,  s2 s3,  ...        what does not fill the last batch is left out"""
    return tuple(joined(samples[i : i + batch]) for i in range(0, len(samples) - batch + 1, batch))


def joined(samples: Sequence[Inputs]) -> Inputs:
    """Inputs of batch 1 as one batch."""
    return cast(Inputs, pytree.tree_map(lambda *parts: torch.cat(parts), *samples))


def leaves(inputs: Inputs) -> list[Any]:
    """The tensors of nested inputs, in the order of the ONNX file's inputs."""
    return pytree.tree_leaves(inputs)
