"""How good a plan is, before anything is lowered: run it in float with Q/DQ in place and compare."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from qcompiler.ir import Graph, evaluate
from qcompiler.ir.graph import call_widened
from qcompiler.numerics import ErrorMeter
from qcompiler.passes.materialize import materialize
from qcompiler.passes.simplify import SIMPLIFY_QDQ
from qcompiler.plan import Plan
from qcompiler.rewrite import run


def expected_sqnr(
    graph: Graph, plan: Plan, samples: Sequence[Sequence[Any]], wanted: Sequence[Sequence[Any]]
) -> float:
    """SQNR in dB of the quantized graph's outputs against `wanted`, over all samples together."""
    quantized = run((materialize(plan), *SIMPLIFY_QDQ), graph)
    meter = ErrorMeter()
    for sample, expected in zip(samples, wanted, strict=True):
        compare(meter, expected, evaluate(quantized, sample, evaluate_node=call_widened))
    return meter.sqnr


def compare(meter: ErrorMeter, expected: Iterable[Any], actual: Iterable[Any]) -> None:
    for old, new in zip(expected, actual, strict=True):
        if isinstance(old, Tensor) and old.is_floating_point() and old.numel():
            meter.update(old.float(), new.float())
