"""Which linears take the range of their input at run time: where the error falls enough for the time.

A range from calibration must hold for all inputs, one taken at run time for one only, so it has finer steps,
but costs another pass over the input. Both are weighed per value, and all linears that read it go one way.
"""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.ir import Graph, arguments, evaluate, label, module_path
from qcompiler.numerics import ErrorMeter
from qcompiler.plan import Plan, ValueSpec
from qcompiler.recipe import Recipe
from qcompiler.target import Target

qc = torch.ops.qcompiler

LEAST_GAIN = 1.0  # dB: a few samples do not tell smaller differences from chance
MOST_TIME = 0.02  # of the time of the linears that read a value


@dataclass(frozen=True, kw_only=True)
class Trade:
    """What one value would gain and cost; both errors are SQNRs of the value itself, in dB."""

    value: ValueSpec
    calibrated_db: float
    run_time_db: float
    time: float  # share of the time of its linears

    @property
    def pays(self) -> bool:
        return self.run_time_db >= self.calibrated_db + LEAST_GAIN and self.time <= MOST_TIME

    def __str__(self) -> str:
        return (
            f"{self.calibrated_db:.1f} dB with a calibrated range, {self.run_time_db:.1f} dB with one"
            f" taken at run time, for {self.time:.1%} more time"
        )


def trades(
    graph: Graph, plan: Plan, recipe: Recipe, target: Target, samples: Sequence[Sequence[Any]]
) -> list[Trade]:
    """One trade for every value that only linears with a float result read as codes.

    A value is left alone where the recipe says of a linear whether it is dynamic.
    """
    nodes = graph.by_name
    values = {
        value.value: value
        for value in plan.values
        if reads_float(value, plan) and not any(is_told(nodes[reader], recipe) for reader in value.readers)
    }
    meters = {name: (ErrorMeter(), ErrorMeter()) for name in values}

    def measure(node: Node, found: Any) -> None:
        if node.name in values:
            calibrated, run_time = meters[node.name]
            calibrated.update(found, as_calibrated(found, values[node.name]))
            run_time.update(found, at_run_time(found))

    for sample in samples:
        evaluate(graph, sample, observe=measure)
    return [
        Trade(
            value=value, calibrated_db=meters[name][0].sqnr, run_time_db=meters[name][1].sqnr,
            time=target.range_macs / sum(outputs(graph, nodes[reader]) for reader in value.readers),
        )
        for name, value in values.items()
    ]  # fmt: skip


def is_told(linear: Node, recipe: Recipe) -> bool:
    names = (module_path(linear), linear.name, label(linear))
    return any("dynamic" in override.changes for override in recipe.overrides_of(*names))


def reads_float(value: ValueSpec, plan: Plan) -> bool:
    """Whether a value is float but for linears that read it as codes and return float."""
    floating = {spec.layer for spec in plan.weights if spec.float_bias}
    return (
        bool(value.readers)
        and not value.dynamic
        and not value.shared
        and value.format == "uint8"
        and set(value.readers) <= floating
    )


def as_calibrated(x: Tensor, value: ValueSpec) -> Tensor:
    scale, zero = torch.tensor(value.scale), torch.tensor(value.zero_point, dtype=torch.uint8)
    codes = qc.quantize(x, scale, zero, value.format)
    result: Tensor = qc.dequantize(codes, scale, zero, value.format)
    return result


def at_run_time(x: Tensor) -> Tensor:
    codes, scale, zero = qc.dynamic_quantize(x)
    result: Tensor = qc.dequantize(codes, scale, zero, "uint8")
    return result


def outputs(graph: Graph, linear: Node) -> int:
    """Output features: what one element of the input is multiplied with."""
    return int(graph.tensors[str(arguments(linear)["weight"].target)].shape[0])


def with_run_time_ranges(recipe: Recipe, graph: Graph, found: Sequence[Trade]) -> Recipe:
    """The recipe with the linears that gain taking their range at run time."""
    nodes = graph.by_name
    for trade in found:
        for reader in trade.value.readers if trade.pays else ():
            # A label says module and node, so it is nobody else's; brackets in it are no patterns.
            recipe = recipe.overriding(glob.escape(label(nodes[reader])), dynamic=True)
    return recipe
