"""What `qcompiler.compile` returns for a model that no graph holds: its Python, with compiled regions in it.

by_region : (module, calls) -> ByRegion       record every call >> compile the regions >> compare >> race
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from qcompiler import evidence
from qcompiler.api import Compiled
from qcompiler.backends.base import Backend, Executable
from qcompiler.errors import ArtifactError, CalibrationError, TraceError
from qcompiler.ir import Graph
from qcompiler.ir.quiet import quiet
from qcompiler.job import settled
from qcompiler.passes.calibrate import batches
from qcompiler.passes.check import distance
from qcompiler.plan import Plan
from qcompiler.progress import Tell
from qcompiler.proof import CHECKED
from qcompiler.region.build import Settings, on_reference
from qcompiler.region.session import Regions
from qcompiler.target.machine import this_cpu
from qcompiler.tune.measure import ROUNDS, interleave

KEPT = 32  # calls of each region to calibrate on; a region in a loop is called many times per batch
CAPTURES = 64  # of one piece of code, for it may be captured anew for every number of boxes; torch stops at 8

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, kw_only=True, repr=False)
class ByRegion(Compiled):
    """A compiled model whose control flow is the user's Python; called and reported on like any other.

    It has no single graph, plan or executable: each region has its own.
    """

    graph: Graph = field(init=False, repr=False)
    plan: Plan = field(init=False, repr=False)
    backend: Backend = field(init=False, repr=False)
    executable: Executable = field(init=False, repr=False)
    run: Callable[..., Any]
    regions: Regions

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a model of regions has no '{name}' as a whole")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.run(*args, **kwargs)

    def save(self, path: str | Path) -> None:
        """Refused: between the regions runs Python, and an artifact holds none."""
        raise ArtifactError(
            f"this {self.data['manifest']['model']} cannot be saved to {path}",
            why="it is compiled region by region, and between the regions runs your Python",
            fix="save the float model and compile it where it runs, or compile its straight parts alone",
        )


def by_region(
    model: nn.Module,
    example_inputs: Any,
    calibration: Iterable[Any] | None,
    settings: Settings,
    *,
    because: TraceError,
    tell: Tell,
) -> ByRegion:
    """Compile the regions of a model that cannot be traced as a whole, `because`.

    Its Python is run on every batch of calibration; a branch that none of them takes stays float.
    """
    why = f"{because.what} as a whole at {because.node or 'some line'}"
    warnings.warn(f"{why}, because {because.why}; it is compiled region by region", stacklevel=3)
    data = settled(model, example_inputs, calibration)
    calls: list[Call] = list(batches(data))
    if not calls:
        raise CalibrationError(
            "the calibration data are empty", why="ranges come from calls", fix="pass at least one batch"
        )
    regions = Regions(
        recipe=settings.recipe, calibrate=KEPT, target=settings.target, backend=settings.backend.name,
        threads=settings.threads, seed=settings.seed, waits=True,
    )  # fmt: skip
    # torch's overloads lag behind its signature
    run = torch.compile(model, backend=regions, recompile_limit=CAPTURES)  # type: ignore[call-overload]
    tell("calibrating", 0, len(calls))
    with torch.no_grad(), quiet():
        for args, kwargs in calls:
            run(*args, **kwargs)
            tell("calibrating", 1, len(calls))
    tell("lowering", 0, None)
    regions.settle()
    tell("comparing with the reference", 0, None)
    (example,) = batches([data[0] if example_inputs is None else example_inputs])
    found = compare(model, run, calls[:CHECKED])
    speed = race(model, run, example, settings.threads) if regions.is_timed else None
    facts = regions.report(model).to_dict()
    alone = calibration is None and settings.recipe.linear_mode == "static"
    note = {"rule": "whole-model", "node": because.node or "model", "reason": f"{why}, because {because.why}"}
    return ByRegion(
        data={
            **facts, "accuracy": {**facts["accuracy"], **found, "ranges_from_example": alone}, "speed": speed,
            "refused": [note, *facts["refused"]],
        },
        run=model if speed and speed["kept"] == "float" else run, regions=regions,
    )  # fmt: skip


@torch.no_grad()
def compare(model: nn.Module, run: Callable[..., Any], calls: Iterable[Call]) -> Mapping[str, Any]:
    """Float, reference and engine on the same calls; those that took different paths are only counted."""
    triples: list[tuple[list[torch.Tensor], ...]] = []
    apart = 0
    for args, kwargs in calls:
        token = on_reference.set(True)
        try:
            exact = leaves(run(*args, **kwargs))
        finally:
            on_reference.reset(token)
        whole, fast = leaves(model(*args, **kwargs)), leaves(run(*args, **kwargs))
        same = shapes(whole) == shapes(exact) == shapes(fast)
        apart += not same
        if same and all(x.numel() for x in whole):
            triples.append((whole, exact, fast))
    counted = {"other_path": apart}
    if not triples:
        return counted
    # The distance is each region's own: where the path depends on the data, one ulp decides about the next.
    figures = evidence.accuracy(distance(*zip(*triples, strict=True)), (), {}, ())
    return counted | {key: figures[key] for key in ("sqnr_db", "reference_sqnr_db", "samples", "agreement")}


def leaves(found: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(found) if isinstance(x, torch.Tensor)]


def shapes(found: Iterable[torch.Tensor]) -> list[torch.Size]:
    return [x.shape for x in found]


@torch.no_grad()
def race(model: nn.Module, run: Callable[..., Any], example: Call, threads: int | None) -> dict[str, Any]:
    """The model as it was against the model as it is; it is given back where it is not faster."""
    args, kwargs = example
    timing = interleave({"float": lambda: model(*args, **kwargs), "quantized": lambda: run(*args, **kwargs)})
    ratio = timing.ratio("float", "quantized")
    kept = "quantized" if ratio > 1 else "float"
    return {
        "float_ms": timing.median("float") * 1e3, "quantized_ms": timing.median("quantized") * 1e3,
        "kept_ms": timing.median(kept) * 1e3, "ratio": timing.ratio("float", kept), "quantized_ratio": ratio,
        "ratios": timing.ratios("float", "quantized"), "rounds": ROUNDS, "threads": threads, "batch": None,
        "cpu": this_cpu().name, "features": list(this_cpu().features), "kept": kept, "given_up": [],
    }  # fmt: skip
