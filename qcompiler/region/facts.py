"""The report's data of a model of regions: that of each part, added up, and what only regions have.

coverage, nodes, layers, tensors, refused, fusions    summed or joined over the parts
regions, breaks, islands, uncaptured         where the graph ended, what runs where, and for how long
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qcompiler.api import Compiled
from qcompiler.recipe import recipe_to_mapping
from qcompiler.region.build import Piece
from qcompiler.region.region import CALIBRATING, Region
from qcompiler.region.session import Regions
from qcompiler.target.machine import this_cpu

# In which of these modules an engine would find work.
WORTHWHILE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def facts(session: Regions, model: nn.Module | None) -> dict[str, Any]:
    """The data of a `Report`; figures of the whole model (its SQNR, its speed) are for `compile` to add."""
    parts = list(compiled_parts(session))
    settings = session.settings
    return {
        "coverage": coverage([part.data["coverage"] for _, part in parts]),
        "accuracy": {"distance": distance([part.data["accuracy"]["distance"] for _, part in parts]),
                     "nodes": nodes(parts)},
        "layers": [
            {**layer, "label": f"{name}/{layer['label']}"}
            for name, part in parts for layer in part.data["layers"]
        ],
        "speed": None,
        "refused": [row for _, part in parts for row in part.data["refused"]],
        "fusions": [row for _, part in parts for row in part.data.get("fusions", ())],
        "tensors": [tensor for _, part in parts for tensor in part.data["tensors"]],
        "regions": {
            "regions": [about(number, region, session) for number, region in enumerate(session.regions)],
            "breaks": [
                {"where": found.where, "code": found.code, "reason": found.reason, "captures": count}
                for found, count in session.breaks.items()
            ],
            "islands": list(islands(session)),
            "uncaptured": uncaptured(session, model) if model is not None else None,
        },
        "manifest": {
            "model": type(model).__name__ if model is not None else None,
            "recipe": recipe_to_mapping(settings.recipe), "target": settings.target.name,
            "backend": settings.backend.name, "seed": settings.seed, "calibrate": session.calibrate,
            "cpu": {"name": this_cpu().name, "features": list(this_cpu().features)},
        },
    }  # fmt: skip


def compiled_parts(session: Regions) -> Iterator[tuple[str, Compiled]]:
    for number, region in enumerate(session.regions):
        for piece in region.pieces:
            if piece.compiled is not None:
                yield f"region {number}", piece.compiled


def coverage(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_op: dict[str, dict[str, int]] = {}
    for part in parts:
        for op, counts in part["by_op"].items():
            sums = by_op.setdefault(op, {"total": 0, "integer": 0})
            for key in sums:
                sums[key] += counts[key]
    kernels: Counter[str] = Counter()
    for part in parts:
        kernels.update(part["kernels"])
    return {
        "planned_integer": sum(part["planned_integer"] for part in parts),
        "executed_integer": sum(part["executed_integer"] for part in parts),
        "by_op": by_op,
        "surprises": [row for part in parts for row in part["surprises"]],
        "stray": [name for part in parts for name in part["stray"]],
        "kernels": dict(kernels),
        "holds": all(part["holds"] for part in parts) if parts else None,
    }


def distance(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """That of the part which is nearest to its bound: every part has outputs, and units, of its own."""
    worst = max(parts, key=lambda part: part["max_lsb"] / max(part["bound_lsb"], 1e-30), default=None)
    if worst is None:
        return {"max_lsb": None, "within": None}
    return {**worst, "within": all(part["within"] for part in parts)}


def nodes(parts: Sequence[tuple[str, Compiled]]) -> dict[str, Any]:
    found = [part.data["accuracy"]["nodes"] for _, part in parts]
    within = [part["within"] for part in found if part["within"] is not None]
    rows = [{**row, "label": f"{name}/{row['label']}"} for name, part in parts
            for row in part.data["accuracy"]["nodes"]["worst"]]  # fmt: skip
    return {
        "checked": sum(part["checked"] for part in found),
        "within": all(within) if within else None,
        "unchecked": sorted({kernel for part in found for kernel in part["unchecked"]}),
        "worst": sorted(rows, key=lambda row: (-row["max_lsb"], -row["changed"]))[:10],
    }


def about(number: int, region: Region, session: Regions) -> dict[str, Any]:
    """One region: where it is, what runs it, how often and for how long."""
    integer = [piece for piece in region.pieces if piece.compiled is not None]
    return {
        "name": f"region {number}",
        "source": region.source,
        "nodes": region.nodes,
        "state": region.state,
        "why": region.why,
        "layers_in_integers": sum(part.data["coverage"]["executed_integer"]
                                  for piece in integer if (part := piece.compiled) is not None),
        "runs_on": runs_on(region, session),
        "islands": sum(piece.island for piece in region.pieces),
        "calls": dict(region.calls),
        "time_us": time(region.pieces) if region.pieces else None,
        "share": share(region, session),
    }  # fmt: skip


def runs_on(region: Region, session: Regions) -> list[str]:
    """What executes a region's calls now."""
    if region.state != "compiled":
        return ["torch"]
    rest = any(piece.compiled is None for piece in region.pieces)
    return [session.settings.backend.name, *(["torch"] if rest else [])]


def share(region: Region, session: Regions) -> float | None:
    """Of the time of all regions that are settled, each as often as it was called since."""
    total = sum(spent(region) for region in session.regions)
    return spent(region) / total if total else None


def spent(region: Region) -> float:
    return time(region.pieces) * (sum(region.calls.values()) - region.calls[CALIBRATING])


def time(pieces: Sequence[Piece]) -> float:
    return sum(piece.microseconds for piece in pieces)


def islands(session: Regions) -> Iterator[dict[str, Any]]:
    """Each island with its share of the time of its region."""
    for number, region in enumerate(session.regions):
        for piece in region.pieces:
            if piece.island or (piece.compiled is None and region.state == "compiled"):
                yield {
                    "region": f"region {number}", "ops": list(piece.ops), "source": piece.source,
                    "why": piece.why, "time_us": piece.microseconds,
                    "share": piece.microseconds / max(time(region.pieces), 1e-9),
                }  # fmt: skip


def uncaptured(session: Regions, model: nn.Module) -> list[str]:
    """Layers that torch.compile gave to no region: Python calls them one by one, in float."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, WORTHWHILE) and not session.holds(weight_of(module))
    ]


def weight_of(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight
