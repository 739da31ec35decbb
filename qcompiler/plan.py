"""The decision, as a value: for every tensor its format and why, for every layer where it will run and why.

A plan can be printed, compared, saved as JSON, edited and replayed; `materialize` carries it out.
"""

from dataclasses import dataclass, field
from typing import Any

import cattrs
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class ValueSpec:
    """One activation tensor that is quantized.

    `readers` are the nodes that read the quantized value (all others read float); empty means all.
    A dynamic value has no range: scale and zero point are computed at run time, those of each row by
    themselves where it says `by_row`, or of each `block` numbers of one.
    Values with the same `shared` name have one scale and zero point.
    """

    value: str
    label: str
    format: str
    why: str
    readers: tuple[str, ...] = ()
    dynamic: bool = False
    by_row: bool = False
    block: int = 0
    shared: str = ""
    observer: str = ""
    lo: float = 0.0
    hi: float = 0.0
    scale: float = 1.0
    zero_point: int = 0
    scores: dict[str, float] = field(default_factory=dict)  # observer -> expected squared error


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """One weight of one layer: format and granularity; scales follow from the weight itself, or were learned.

    A weight whose observer is "grid" has its final values already, and is reproduced bit for bit; `method` is
    then the way of rounding that was kept, and `scores` the SQNR in dB of the layer's output by each tried.
    Where the observer is "learned", `scales` are all of its scales in order, exact in float32.
    float_bias: the kernel adds the layer's bias to a float result, so that the bias stays as it is.
    scale_type: what scales are rounded to, before codes are chosen.
    square: as many outputs as inputs of a group share its scale.
    """

    layer: str
    argument: str
    format: str
    axis: int
    group_size: int = 0
    observer: str = "minmax"
    limit: int = 0  # largest |code|, 0 for the format's own
    float_bias: bool = False
    method: str = "nearest"
    scale_type: str = "float32"
    square: bool = False
    scales: tuple[float, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """Where one op will run: precision "int8", "int4", "float8_e4m3fn", ... or "float", and why."""

    node: str
    label: str
    op: str
    kernel: str
    precision: str
    why: str
    source: str = ""
    output_quantized: bool = False

    @property
    def is_integer(self) -> bool:
        return self.precision.startswith(("int", "uint"))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All decisions of one compilation.

    Invariants: values and layers appear in execution order; every value that a planned integer layer
    reads or writes has a ValueSpec.
    """

    recipe: str
    target: str
    values: tuple[ValueSpec, ...] = ()
    weights: tuple[WeightSpec, ...] = ()
    layers: tuple[LayerPlan, ...] = ()

    def layer(self, node: str) -> LayerPlan | None:
        return next((layer for layer in self.layers if layer.node == node), None)

    def __str__(self) -> str:
        rows = [f"plan of recipe {self.recipe} for target {self.target}"]
        rows += [
            f"  {layer.label:40} {layer.precision:8} {layer.kernel:26} {layer.why}" for layer in self.layers
        ]
        for value in self.values:
            span = "at run time" if value.dynamic else f"[{value.lo:.4g}, {value.hi:.4g}] by {value.observer}"
            rows.append(f"  {value.label:40} {value.format:8} {span:36} {value.why}")
        return "\n".join(rows)

    def table(self) -> Table:
        """The layers as a terminal table."""
        table = Table(
            "layer", "op", "precision", "kernel", "why", title=f"Plan: {self.recipe} on {self.target}"
        )
        for layer in self.layers:
            table.add_row(layer.label, layer.op, layer.precision, layer.kernel, layer.why)
        return table


def plan_to_json(plan: Plan) -> dict[str, Any]:
    return dict(cattrs.unstructure(plan))


def plan_from_json(data: Any) -> Plan:
    return cattrs.Converter(forbid_extra_keys=True).structure(data, Plan)
