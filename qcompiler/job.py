"""What one compilation works on: the canonical graph, its data, and how it was asked for."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from qcompiler.errors import CalibrationError
from qcompiler.ir import Graph, flatten_inputs, trace
from qcompiler.ir.axes import Axes
from qcompiler.ir.program import load_program, own_inputs
from qcompiler.ir.text import tensor_bytes
from qcompiler.ir.trace import Model
from qcompiler.passes.calibrate import batches
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.progress import Tell
from qcompiler.rewrite import Pipeline, run


@dataclass(frozen=True, kw_only=True)
class Job:
    """A traced model with its data; `data` can be read several times."""

    name: str
    original: Graph
    data: Sequence[Any]
    example: Any
    has_data: bool = True  # else `data` is the example alone

    def samples(self, count: int) -> list[list[Any]]:
        """The first calibration batches, in flat order: real values to compare on."""
        return list(flat(self.original, self.data, count))

    @property
    def timed(self) -> list[Any]:
        """What the model is timed on: the example inputs, in flat order."""
        return next(flat(self.original, self.data if self.example is None else [self.example], 1))

    @property
    def batch(self) -> int:
        """Batch size of the example."""
        return next((x.shape[0] for x in self.timed if isinstance(x, Tensor) and x.dim()), 1)


def take(
    model: Model,
    example_inputs: Any,
    calibration: Iterable[Any] | None,
    tell: Tell,
    *,
    forms: Pipeline = (),
    dynamic: Axes | None = None,
    floats: Collection[torch.dtype] = (torch.float32,),
) -> Job:
    """Trace a model into its canonical form, then into `forms`, and settle what it is calibrated on.

    floats: the types that a model for this target may compute in.
    """
    tell("tracing", 0, None)
    name = Path(model).name if isinstance(model, str | Path) else type(model).__name__
    if isinstance(model, str | Path):
        model = load_program(Path(model))
    graph = run((*CANONICAL, *forms), trace(model, example_inputs, dynamic=dynamic, floats=floats))
    data = settled(model, example_inputs, calibration)
    given = calibration is not None
    return Job(name=name, original=graph, data=data, example=example_inputs, has_data=given)


def settled(model: Model, example_inputs: Any, calibration: Iterable[Any] | None) -> Sequence[Any]:
    """Calibration data as a sequence; the example inputs where there is none."""
    if isinstance(calibration, Sequence) and not isinstance(calibration, str | bytes):
        return calibration
    if calibration is not None:
        # A generator can be read once, and calibration may need a second pass.
        return [kwargs or args for args, kwargs in batches(calibration)]
    if example_inputs is None and isinstance(model, ExportedProgram):
        example_inputs = own_inputs(model)
    if example_inputs is None:
        raise CalibrationError(
            "there is neither calibration data nor an example input",
            fix="pass calibration=[...], or example_inputs",
        )
    return [example_inputs]


def flat(graph: Graph, data: Iterable[Any], count: int) -> Iterator[list[Any]]:
    for (args, kwargs), _ in zip(batches(data), range(count), strict=False):
        yield flatten_inputs(graph, args, kwargs)


def data_hash(job: Job) -> str:
    """SHA-256 over the calibration tensors, in order."""
    total = hashlib.sha256()
    for args, kwargs in batches(job.data):
        for x in flatten_inputs(job.original, args, kwargs):
            if isinstance(x, Tensor):
                total.update(tensor_bytes(x))
    return total.hexdigest()
