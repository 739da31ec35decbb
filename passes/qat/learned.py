"""A plan with the scales that training has found, in place of those that calibration found.

with_scales : (Plan, Learned) -> Plan        formats, readers, granularity and layers stay as they were
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qcompiler.numerics import IntFormat, parse_format
from qcompiler.plan import Plan, ValueSpec, WeightSpec


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Scale and zero point of values, and all scales of the weights of layers, by name; exact in float32.

    What is not named keeps the scale of its plan.
    """

    values: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def with_scales(plan: Plan, learned: Learned) -> Plan:
    values = tuple(
        with_scale(value, *learned.values[value.value]) if value.value in learned.values else value
        for value in plan.values
    )
    return replace(plan, values=values, weights=tuple(with_own(spec, learned) for spec in plan.weights))


def with_scale(value: ValueSpec, scale: float, zero_point: int) -> ValueSpec:
    """The range follows: lo = s (qmin - z), hi = s (qmax - z)."""
    format = parse_format(value.format)
    lo, hi = (format.qmin, format.qmax) if isinstance(format, IntFormat) else (-format.max, format.max)
    return replace(
        value, observer="learned", scale=scale, zero_point=zero_point, scores={},
        lo=scale * (lo - zero_point), hi=scale * (hi - zero_point),
    )  # fmt: skip


def with_own(spec: WeightSpec, learned: Learned) -> WeightSpec:
    scales = learned.weights.get(spec.layer)
    return spec if scales is None else replace(spec, observer="learned", method="nearest", scales=scales)
