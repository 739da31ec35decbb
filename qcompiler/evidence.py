"""The report's data, from the values that a compilation leaves behind. JSON-able all the way down."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.base import Prediction
from qcompiler.backends.guard import Verdict
from qcompiler.backends.reference import ReferenceExecutable
from qcompiler.ir import Graph, evaluate
from qcompiler.numerics import sqnr
from qcompiler.passes.calibrate import Statistics
from qcompiler.passes.check import Contract, Distance, Row
from qcompiler.passes.decide import Decision
from qcompiler.passes.forms import apart
from qcompiler.passes.fuse import fuse, sums_of_codes
from qcompiler.passes.profit import Fusion
from qcompiler.plan import Plan, ValueSpec
from qcompiler.target.machine import this_cpu
from qcompiler.tune.roofline import Machine, roofline, work_of

WORST_TENSORS = 12
HISTOGRAM_BINS = 256


def coverage(contract: Contract, kernels: Mapping[str, int]) -> dict[str, Any]:
    """How much of what was planned in few bits runs so."""
    planned = [row for row in contract.rows if row.layer.precision != "float"]
    by_op: dict[str, dict[str, int]] = {}
    for row in contract.rows:
        if row.layer.precision != "float" or starts(row):
            counts = by_op.setdefault(row.layer.op, {"total": 0, "integer": 0})
            counts["total"] += 1
            counts["integer"] += row.executed != "float"
    return {
        "planned_integer": len(planned),
        "executed_integer": sum(row.executed != "float" for row in planned),
        "by_op": by_op,
        "surprises": [
            {"label": row.layer.label, "op": row.layer.op, "planned": row.layer.precision,
             "executed": row.executed, "reason": row.reason, "source": row.layer.source}
            for row in contract.surprises
        ],
        "stray": list(contract.stray),
        "kernels": dict(kernels),
        "holds": contract.holds,
    }  # fmt: skip


def starts(row: Row) -> bool:
    return row.layer.op.startswith(("conv", "linear"))


def accuracy(
    found: Distance, nodes: Sequence[Any], labels: Mapping[str, str], kernels: Iterable[str]
) -> dict[str, Any]:
    """`kernels`: all that run; `unchecked` are those of which none was compared by itself."""
    worst = sorted(nodes, key=lambda node: (-node.max_lsb, -node.changed))
    return {
        "sqnr_db": number(found.sqnr_db),
        "reference_sqnr_db": number(found.reference_sqnr_db),
        "samples": found.samples,
        "agreement": found.float_agreement,
        "distance": {
            "max_lsb": found.max_lsb, "changed": found.changed, "bound_lsb": found.bound_lsb,
            "within": found.within, "agreement": found.agreement,
            "unit": f"1 LSB = {found.unit:.4g}, the output's range / 255",
        },
        "nodes": {
            "checked": len(nodes),
            "within": all(node.max_lsb <= node.allowed for node in nodes) if nodes else None,
            "unchecked": sorted(set(kernels) - {node.kernel for node in nodes}),
            "worst": [
                {"label": labels.get(node.node, node.node), "kernel": node.kernel, "max_lsb": node.max_lsb,
                 "allowed": node.allowed, "changed": node.changed}
                for node in worst[:10]
            ],
        },
        "metric": None,
    }  # fmt: skip


def number(value: float) -> float | None:
    """JSON has no infinity: an exact match is null decibels of noise."""
    return value if math.isfinite(value) else None


def layers(
    decision: Decision, contract: Contract, quality: Mapping[str, float], verdict: Verdict | None,
    machine: Machine | None, batch: int,
) -> list[dict[str, Any]]:  # fmt: skip
    nodes = decision.graph.by_name
    given_up = {label for loss in (verdict.given_up if verdict else ()) for label in loss.layers}
    profiles = verdict.profiles if verdict else {}
    groups = {anchor.name: group for anchor, group in fuse(decision.graph, decision.target).items()}

    def spent(name: str, kind: str) -> float | None:
        """Time of a layer with the ops it absorbs, which the float model may run as nodes of their own."""
        group, profile = groups.get(name), profiles.get(kind, {})
        parts = [name, *(node.name for node in (group.chain if group else ()))]
        times = [profile[part] for part in parts if part in profile]
        return sum(times) if times else None

    return [
        {
            "node": row.layer.node, "label": row.layer.label, "op": row.layer.op,
            "planned": row.layer.precision, "executed": row.executed, "kernel": row.kernel,
            "why": row.reason or row.layer.why, "source": row.layer.source,
            "sqnr_db": quality.get(row.layer.node),
            "time_us": spent(row.layer.node, "quantized"),
            "float_time_us": spent(row.layer.node, "float"),
            **work_facts(nodes[row.layer.node], row, machine, batch),
            "given_up": row.layer.label in given_up,
        }
        for row in contract.rows
    ]  # fmt: skip


def work_facts(node: Node, row: Row, machine: Machine | None, batch: int) -> dict[str, Any]:
    work = work_of(node, batch)
    if work is None or machine is None:
        return {"roofline_us": None, "macs": work.macs if work else None}
    bound = roofline(work, machine, integer=row.executed != "float")
    return {"roofline_us": bound * 1e6, "macs": work.macs}


def layer_quality(
    decision: Decision, original: Graph, reference: ReferenceExecutable, sample: Sequence[Any]
) -> dict[str, float]:
    """SQNR of every quantized layer's result, everything upstream quantized, against the float graph.

    A layer without any error has no finite SQNR and is left out.
    """
    planned = {layer.node for layer in decision.plan.layers if layer.precision != "float"}
    groups = fuse(decision.graph, decision.target)
    ends = {
        anchor.name: reference.returned(group.result.name)
        for anchor, group in groups.items()
        if anchor.name in planned
    }
    values = reference.values(sample, set(ends.values()))
    wanted: dict[str, Tensor] = {}

    def keep(node: Node, value: Any) -> None:
        if node.name in values and isinstance(value, Tensor):
            wanted[node.name] = value

    evaluate(original, sample, observe=keep)
    figures = {layer: sqnr(wanted[end], values[end]) for layer, end in ends.items() if end in wanted}
    return {layer: figure for layer, figure in figures.items() if math.isfinite(figure)}


def speed(verdict: Verdict, *, threads: int | None, batch: int) -> dict[str, Any]:
    timing = verdict.timing
    kept = verdict.kept
    return {
        "float_ms": timing.median("float") * 1e3,
        "quantized_ms": timing.median("quantized") * 1e3,
        "kept_ms": timing.median(kept) * 1e3,
        "ratio": timing.ratio("float", kept),
        "quantized_ratio": timing.ratio("float", "quantized"),
        "ratios": timing.ratios("float", kept if kept != "float" else "quantized"),
        "rounds": len(timing.seconds["float"]),
        "threads": threads,
        "batch": batch,
        "cpu": this_cpu().name,
        "features": list(this_cpu().features),
        "kept": kept,
        "given_up": [{"labels": list(loss.layers), "why": loss.why} for loss in verdict.given_up],
    }


def foretold(predictions: Sequence[Prediction], kept: str) -> dict[str, Any]:
    """What stands for a speed where the device is absent: nothing was timed, and predictions have decided."""
    return {
        "predicted": [
            {"labels": list(each.labels), "why": each.why, "us": each.us, "float_us": each.float_us,
             "device": each.device, "kept": each.kept}
            for each in predictions
        ],
        "kept": kept,
        "given_up": [
            {"labels": list(each.labels), "why": each.why} for each in predictions if not each.kept
        ],
    }  # fmt: skip


def refused(graph: Graph) -> list[dict[str, str]]:
    """What rules and passes declined, each once, with the reason."""
    seen = Counter((note.rule, note.node, note.reason) for note in graph.notes if note.outcome == "refused")
    return [{"rule": rule, "node": node, "reason": reason} for rule, node, reason in seen]


def fusions(decision: Decision, lowered: Sequence[Fusion]) -> list[dict[str, Any]]:
    """Those weighed before planning, in it and in lowering; equal ones are one row, refused ones come first.

    Siblings that were joined are one linear now, and not among them.
    """
    integer = {layer.node for layer in decision.plan.layers if layer.is_integer}
    planned = (
        found for anchor, found in sums_of_codes(decision.graph, decision.target) if anchor.name in integer
    )
    where: dict[Fusion, list[str]] = {}
    for found in (*apart(decision.graph, decision.recipe, decision.target), *planned, *lowered):
        where.setdefault(replace(found, first="", second=""), []).append(found.first)
    return [
        {"kind": like.kind, "where": layers, "fused_us": like.fused_us, "apart_us": like.apart_us,
         "source": like.source, "taken": like.taken}
        for like, layers in sorted(where.items(), key=lambda item: item[0].taken)
    ]  # fmt: skip


def tensors(plan: Plan, ranges: Mapping[str, Statistics]) -> list[dict[str, Any]]:
    """The quantized tensors with the worst expected SQNR, with what was observed of them."""
    rows = [tensor(value, ranges[value.value]) for value in plan.values if value.value in ranges]
    rows.sort(key=lambda row: row["sqnr_db"] if row["sqnr_db"] is not None else math.inf)
    return rows[:WORST_TENSORS]


def tensor(value: ValueSpec, statistics: Statistics) -> dict[str, Any]:
    histogram = statistics.histogram
    counts, centers = histogram.counts, histogram.centers
    total = max(int(counts.sum()), 1)
    outside = int(counts[(centers < value.lo) | (centers > value.hi)].sum())
    power = float((counts * centers**2).sum()) / total
    error = value.scores.get(value.observer, 0.0)
    merge = max(1, math.ceil(len(counts) / HISTOGRAM_BINS))
    padded = torch.nn.functional.pad(torch.as_tensor(counts), (0, -len(counts) % merge))
    return {
        "label": value.label, "format": value.format, "observer": value.observer,
        "lo": value.lo, "hi": value.hi, "scale": value.scale, "zero_point": value.zero_point,
        "clipped": outside / total,
        "sqnr_db": 10 * math.log10(power / error) if power > 0 and error > 0 else None,
        "scores": dict(value.scores),
        "histogram": {
            "start": float(centers[0] - histogram.width / 2) if len(centers) else 0.0,
            "width": histogram.width * merge,
            "counts": padded.reshape(-1, merge).sum(1).tolist(),
        },
    }  # fmt: skip
