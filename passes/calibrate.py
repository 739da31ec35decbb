"""What the values of a graph look like on real data: streaming statistics, memory independent of the data.

calibrate : (Graph, data, values to observe) -> {value: Statistics}
"""

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.errors import CalibrationError
from qcompiler.ir import Graph, as_call, evaluate, flatten_inputs
from qcompiler.ir.graph import call_widened
from qcompiler.ir.spec import label
from qcompiler.numerics import Histogram
from qcompiler.progress import Tell, silent


@dataclass
class Statistics:
    """Everything that is kept of one tensor: a histogram, and per-channel figures along `axis`."""

    name: str
    axis: int
    histogram: Histogram = field(default_factory=Histogram)
    largest: Tensor | None = None  # max |x| per channel
    total: Tensor | None = None  # sum of x per channel, float64
    squares: Tensor | None = None  # sum of x^2 per channel
    count: int = 0  # elements per channel

    def observe(self, x: Tensor) -> None:
        self.histogram.observe(x)
        x = x.detach().float()
        rows = x.movedim(self.axis, 0).flatten(1) if x.dim() > 1 else x.reshape(1, -1)
        largest, total, squares = rows.abs().amax(1), rows.sum(1, dtype=torch.float64), (rows * rows).sum(1)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares
        self.count += rows.shape[1]

    @property
    def mean(self) -> Tensor:
        """Mean of x per channel."""
        if self.total is None:
            raise CalibrationError(f"'{self.name}' was never observed", fix="calibrate before asking")
        return (self.total / self.count).float()


Ranges = Mapping[str, Statistics]


def batches(data: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Calibration data as calls: any iterable of tensors, tuples of arguments or dicts of keywords."""
    if isinstance(data, Tensor | str | bytes | Mapping) or not isinstance(data, Iterable):
        raise CalibrationError(
            f"calibration data is a {type(data).__name__}",
            why="it must be an iterable of batches (tensors, tuples or dicts)",
            fix="wrap a single batch in a list",
        )
    for batch in data:
        yield as_call(batch)


def calibrate(graph: Graph, data: Iterable[Any], values: Iterable[Node], *, tell: Tell = silent) -> Ranges:
    """Run the graph on every batch and collect statistics of `values`.

    Raises CalibrationError for empty data, and for NaN or inf naming tensor and batch.
    """
    found = {node.name: Statistics(name=label(node), axis=channel_axis(node)) for node in values}
    if not found:
        return found
    seen = 0
    for seen, flat in enumerate(flat_batches(graph, data, tell), start=1):
        check_finite(graph, flat, seen)

        def observe(node: Node, value: Any, batch: int = seen) -> None:
            if node.name in found:
                observe_finite(found[node.name], value, batch)

        evaluate(graph, flat, observe=observe, evaluate_node=call_widened)
    if not seen:
        raise no_data()
    return found


def no_data() -> CalibrationError:
    return CalibrationError(
        "the calibration data is empty", why="ranges come from data", fix="give at least one batch"
    )


def flat_batches(graph: Graph, data: Iterable[Any], tell: Tell = silent) -> Iterator[list[Any]]:
    """Every batch in the graph's flat order."""
    total = len(data) if isinstance(data, Sized) else None
    for done, (args, kwargs) in enumerate(batches(data)):
        tell("calibrating", done, total)
        yield flatten_inputs(graph, args, kwargs)


def observe_finite(statistics: Statistics, value: Tensor, batch: int) -> None:
    try:
        statistics.observe(value)
    except CalibrationError as error:
        raise CalibrationError(
            f"'{statistics.name}' {error.what}",
            why=f"the model computes it from calibration batch {batch}",
            fix="leave that batch out, or mend the model's overflow",
        ) from error


def check_finite(graph: Graph, flat: list[Any], batch: int) -> None:
    for node, value in zip(graph.inputs, flat, strict=True):
        if isinstance(value, Tensor) and not value.numel():
            raise CalibrationError(
                f"input '{node.name}' of calibration batch {batch} is empty", fix="leave it out"
            )
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            kind = "NaN" if value.isnan().any() else "inf"
            raise CalibrationError(
                f"input '{node.name}' of calibration batch {batch} contains {kind}",
                fix="clean the data, or leave that batch out",
            )


def channel_axis(node: Node) -> int:
    """Axis of the channels: 1 for what a convolution reads or writes, else the last."""
    around = [*node.users, node]
    return 1 if any("conv" in str(near.target) or "pool" in str(near.target) for near in around) else -1
