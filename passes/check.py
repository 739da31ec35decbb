"""What was promised against what is: the lowering contract, and the distance to the reference.

contract : (Plan, Execution) -> Contract        planned against executed precision, per layer
distance : (engine, reference) -> Distance      in units of the last place of the output
"""

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
    """Compare float, reference and engine outputs of the same samples; each is [samples][outputs]."""
    exact, run = tensors(reference), tensors(engine)
    unit = (
        max(float(max(y.max() for y in exact) - min(y.min() for y in exact)) / 255, 1e-30) if exact else 1.0
    )
    gaps = [(a.double() - b.double()).abs() / unit for a, b in zip(exact, run, strict=True)]
    noise = [(a.double() - b.double()).abs() / unit for a, b in zip(tensors(wanted), exact, strict=True)]
    total = sum(gap.numel() for gap in gaps)
    return Distance(
        max_lsb=max((float(gap.max()) for gap in gaps), default=0.0),
        changed=sum(int((gap > 0).sum()) for gap in gaps) / max(total, 1),
        bound_lsb=max(1.0, 2 * max((float(gap.max()) for gap in noise), default=0.0)),
        unit=unit,
        agreement=agreement(exact, run),
        float_agreement=agreement(tensors(wanted), run),
        sqnr_db=pooled_sqnr(wanted, engine),
        reference_sqnr_db=pooled_sqnr(wanted, reference),
        samples=len(wanted),
    )


def tensors(outputs: Sequence[Sequence[Any]]) -> list[Tensor]:
    """The floating-point tensors of all samples."""
    return [
        y
        for sample in outputs
        for y in sample
        if isinstance(y, Tensor) and y.is_floating_point() and y.numel()
    ]


def agreement(reference: Sequence[Tensor], engine: Sequence[Tensor]) -> float:
    """Share of rows whose largest entry stands at the same place."""
    rows = [
        (a.argmax(-1) == b.argmax(-1)).double().flatten()
        for a, b in zip(reference, engine, strict=True)
        if a.dim()
    ]
    counted = sum(row.numel() for row in rows)
    return float(sum(row.sum() for row in rows) / counted) if counted else 1.0


def pooled_sqnr(wanted: Sequence[Sequence[Any]], actual: Sequence[Sequence[Any]]) -> float:
    meter = ErrorMeter()
    for old, new in zip(tensors(wanted), tensors(actual), strict=True):
        meter.update(old, new)
    return meter.sqnr
