"""Which engine of a machine ships: a model that is worth it is compiled for each, and they run side by side.

own = compile(target)    others = compile(kin)    -->    the fastest of those as exact, and all their figures
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from qcompiler.backends.base import Executable
from qcompiler.ir import Graph
from qcompiler.plan import Plan
from qcompiler.tune.measure import interleave
from qcompiler.tune.roofline import work_of

# Multiply-accumulates in integers, half a millisecond of one core: engines differ little in what is less.
WORTH_TRYING = 100_000_000
AS_EXACT = 1.0  # dB below the most exact engine that a faster one may be


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One engine with its model, ready to be timed; `sqnr_db` is against float."""

    backend: str
    executable: Executable
    inputs: Sequence[Tensor]
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Who won, and a row of figures for every engine, also for one that could not take part."""

    best: int
    rows: Sequence[Mapping[str, Any]]


def is_worth_trying(graph: Graph, plan: Plan, batch: int) -> bool:
    """Whether a plan computes enough in integers that engines differ in it."""
    nodes = graph.by_name
    found = (work_of(nodes[layer.node], batch) for layer in plan.layers if layer.precision != "float")
    return sum(work.macs for work in found if work is not None) >= WORTH_TRYING


def fastest(
    entries: Sequence[Entry], refused: Mapping[str, str], tick: Callable[[], None] = lambda: None
) -> Outcome:
    """The first entry wins unless another is faster and as exact; `refused` says why some did not enter."""
    timing = interleave({e.backend: partial(e.executable, e.inputs) for e in entries}, tick=tick)
    most = max(entry.sqnr_db for entry in entries)
    exact = [entry for entry in entries if entry.sqnr_db >= most - AS_EXACT]
    first, best = entries[0], min(exact, key=lambda entry: timing.median(entry.backend))
    if first in exact and timing.ratio(first.backend, best.backend) <= 1:
        best = first
    rows: list[Mapping[str, Any]] = [
        {
            "backend": entry.backend, "ms": timing.median(entry.backend) * 1e3, "sqnr_db": entry.sqnr_db,
            "ratio": timing.ratio(first.backend, entry.backend), "kept": entry is best, "why": "",
        }
        for entry in entries
    ]  # fmt: skip
    rows += [{"backend": name, "kept": False, "why": why} for name, why in refused.items()]
    return Outcome(best=entries.index(best), rows=rows)
