"""What was promised against what is: the lowering contract, and the distance to the reference.

contract : (Plan, Execution) -> Contract        planned against executed precision, per layer
distance : (engine, reference) -> Distance      in units of the last place of the output
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from qcompiler.errors import ContractError
from qcompiler.numerics import ErrorMeter
from qcompiler.plan import LayerPlan, Plan


class Ran(Protocol):
    """How one layer ran, as a backend reports it."""

    @property
    def node(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer: planned and executed."""

    layer: LayerPlan
    executed: str
    kernel: str
    reason: str

    @property
    def is_surprise(self) -> bool:
        """Planned in few bits, executed in float."""
        return self.layer.precision != "float" and self.executed == "float"


@dataclass(frozen=True, kw_only=True)
class Contract:
    """Planned against executed, for every layer; holds if nothing planned in integers runs in float."""

    rows: tuple[Row, ...]
    stray: tuple[str, ...]

    @property
    def surprises(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.is_surprise)

    @property
    def holds(self) -> bool:
        return not self.surprises and not self.stray

    def enforce(self) -> None:
        """Raise ContractError if it does not hold."""
        if self.surprises:
            first = self.surprises[0]
            raise ContractError(
                f"{len(self.surprises)} layers planned as {first.layer.precision} run in float",
                node=f"{first.layer.label} ({first.layer.op})",
                why=first.reason,
                fix="change the recipe for these layers, or compile without strict",
            )
        if self.stray:
            raise ContractError(
                f"{len(self.stray)} quantize/dequantize pairs stand between integer kernels",
                node=self.stray[0],
                fix="report it with the model, or compile without strict",
            )


def contract(plan: Plan, ran: Iterable[Ran], stray: Sequence[str]) -> Contract:
    by_node = {layer.node: layer for layer in ran}
    rows = tuple(
        Row(layer=layer, executed=by_node[layer.node].precision, kernel=by_node[layer.node].kernel,
            reason=by_node[layer.node].reason)
        for layer in plan.layers
    )  # fmt: skip
    return Contract(rows=rows, stray=tuple(stray))


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far an engine's outputs are from the reference's over some samples.

    `unit` is one LSB of the output if it were stored in 8 bits: (max - min) / 255 of the reference. The
    bound is twice the reference's own distance to float: an engine whose float ops round differently may
    be as far from float as the reference is, on the other side.
    """

    max_lsb: float
    changed: float
    bound_lsb: float
    unit: float
    agreement: float  # of largest entries, engine with reference
    float_agreement: float  # and engine with float
    sqnr_db: float
    reference_sqnr_db: float
    samples: int

    @property
    def within(self) -> bool:
        return self.max_lsb <= self.bound_lsb

    def enforce(self) -> None:
        """Raise ContractError if the engine is further away than allowed."""
        if not self.within:
            raise ContractError(
                f"the output is {self.max_lsb:.3g} LSB from the reference",
                why=f"{self.bound_lsb:.3g} are allowed",
                fix="report it with the model, or use another recipe",
            )


def distance(
    wanted: Sequence[Sequence[Any]], reference: Sequence[Sequence[Any]], engine: Sequence[Sequence[Any]]
) -> Distance:
    """Compare float, reference and engine outputs of the same samples; each is [samples][outputs].

    Every output is measured in its own unit; `unit` is that of the first. Integer outputs (an argmax, say)
    count by the share of equal entries, in `agreement`.
    """
    columns = [
        Column.of(*outputs) for outputs in zip(*map(columns_of, (wanted, reference, engine)), strict=True)
    ]
    counted = [column for column in columns if column.unit]
    elements = sum(column.elements for column in counted)
    return Distance(
        max_lsb=largest([column.gap for column in counted]),
        changed=sum(column.changed for column in counted) / max(elements, 1),
        bound_lsb=max(1.0, 2 * largest([column.noise for column in counted])),
        unit=counted[0].unit if counted else 1.0,
        agreement=average([column.agreement for column in columns]),
        float_agreement=average([column.float_agreement for column in columns]),
        sqnr_db=pooled_sqnr(wanted, engine),
        reference_sqnr_db=pooled_sqnr(wanted, reference),
        samples=len(wanted),
    )


def columns_of(outputs: Sequence[Sequence[Any]]) -> list[list[Tensor]]:
    """[samples][outputs] -> [outputs][samples], the tensors among them."""
    return [
        list(column) for column in zip(*outputs, strict=True) if all(isinstance(y, Tensor) for y in column)
    ]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One output over all samples; gap and noise in units, NaN where an engine returns it."""

    unit: float  # 0 for an integer output, which has no LSB
    elements: int
    gap: float
    changed: int
    noise: float
    agreement: float
    float_agreement: float

    @classmethod
    def of(cls, wanted: Sequence[Tensor], reference: Sequence[Tensor], engine: Sequence[Tensor]) -> "Column":
        floating = all(y.is_floating_point() and y.numel() for y in (*reference, *engine))
        spread = float(max(y.max() for y in reference) - min(y.min() for y in reference)) if floating else 0.0
        unit = max(spread / 255, 1e-30) if floating else 0.0
        gaps = [apart(a, b) / unit for a, b in zip(reference, engine, strict=True)] if floating else []
        noise = [apart(a, b) / unit for a, b in zip(wanted, reference, strict=True)] if floating else []
        return cls(
            unit=unit,
            elements=sum(gap.numel() for gap in gaps),
            gap=largest([float(gap.max()) for gap in gaps]),
            changed=sum(int((gap != 0).sum()) for gap in gaps),
            noise=largest([float(gap.max()) for gap in noise]),
            agreement=agreement(reference, engine),
            float_agreement=agreement(wanted, engine),
        )


def apart(first: Tensor, second: Tensor) -> Tensor:
    return (first.double() - second.double()).abs()


def largest(values: Sequence[float]) -> float:
    """The maximum, NaN if any value is; 0 of nothing."""
    return math.nan if any(map(math.isnan, values)) else max(values, default=0.0)


def average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0


def agreement(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Share of rows whose largest entry stands at the same place; of equal entries, for integers."""
    rows = [same_answer(a, b).double().flatten() for a, b in zip(first, second, strict=True)]
    counted = sum(row.numel() for row in rows)
    return float(sum(row.sum() for row in rows) / counted) if counted else 1.0


def same_answer(first: Tensor, second: Tensor) -> Tensor:
    if not first.is_floating_point() or not first.dim() or not first.numel():
        return first == second
    return first.argmax(-1) == second.argmax(-1)


def pooled_sqnr(wanted: Sequence[Sequence[Any]], actual: Sequence[Sequence[Any]]) -> float:
    """SQNR in dB over all floating-point outputs of all samples together."""
    meter = ErrorMeter()
    for column in zip(columns_of(wanted), columns_of(actual), strict=True):
        for old, new in zip(*column, strict=True):
            if old.is_floating_point() and old.numel():
                meter.update(old, new)
    return meter.sqnr
