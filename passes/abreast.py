"""All calibration batches through a graph abreast: each value is there for all before the next one is.

So a weight can be rounded when it is reached, on inputs that the rounded layers before it have made, and the
data passes once. Memory is that of the values alive at one node, over all batches, and one H.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from qcompiler.errors import CalibrationError
from qcompiler.ir import Graph, evaluate, label
from qcompiler.ir.graph import call_widened


@dataclass(frozen=True, kw_only=True)
class Abreast:
    """One value, once for every batch."""

    values: Sequence[Any]


Reached = Callable[[Node, Sequence[Tensor]], Tensor | None]
"""A linear and its inputs in all batches -> the weight that it computes with, None for its own."""


def run_abreast(graph: Graph, batches: Iterable[Sequence[Any]], reached: Reached) -> None:
    """Evaluate a graph on all batches, asking at every linear for its weight."""
    columns = [Abreast(values=values) for values in zip(*batches, strict=True)]

    def compute(node: Node, args: Any, kwargs: dict[str, Any], seen: Mapping[Node, Any]) -> Any:
        if node.target is torch.ops.aten.linear.default and isinstance(args[0], Abreast):
            weight = reached(node, args[0].values)
            args = args if weight is None else (args[0], weight, *args[2:])
        count = next((len(arg.values) for arg in pytree.tree_leaves((args, kwargs)) if is_abreast(arg)), 0)
        if not count:
            return call_widened(node, args, kwargs, seen)
        calls = [pytree.tree_map(picking(index), (args, kwargs)) for index in range(count)]
        return Abreast(values=[call_widened(node, call[0], call[1], seen) for call in calls])

    evaluate(graph, columns, evaluate_node=compute)


def is_abreast(value: Any) -> bool:
    return isinstance(value, Abreast)


def picking(index: int) -> Callable[[Any], Any]:
    return lambda value: value.values[index] if isinstance(value, Abreast) else value


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """H = sum x x^T [in, in] in float64, mean |x| per channel, and over how many rows x."""

    second: Tensor
    magnitude: Tensor
    rows: int

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> "Moments":
        second, magnitude, count = torch.zeros(()), torch.zeros(()), 0
        for x in batches:
            rows = x.detach().reshape(-1, x.shape[-1]).float()
            second = second + (rows.t() @ rows).double()
            magnitude = magnitude + rows.abs().sum(0, dtype=torch.float64)
            count += len(rows)
        return cls(second=second, magnitude=magnitude / max(count, 1), rows=count)

    def power(self, error: Tensor) -> float:
        """||E X||^2 = tr(E H E^T) for E [out, in]."""
        wide = error.double()
        return float(((wide @ self.second) * wide).sum())


def moments_at(node: Node, inputs: Sequence[Tensor]) -> Moments:
    """Of a linear's inputs; raises CalibrationError where the model computes NaN or inf, as float16 may."""
    for batch, x in enumerate(inputs, start=1):
        if not bool(x.isfinite().all()):
            kind = "NaN" if x.isnan().any() else "inf"
            dtype = str(x.dtype).removeprefix("torch.")
            raise CalibrationError(
                f"the input of '{label(node)}' contains {kind}",
                why=f"the model computes it in {dtype} from calibration batch {batch}",
                fix="leave that batch out, convert the model to a type of more range, or round to nearest",
            )
    return Moments.of(inputs)
