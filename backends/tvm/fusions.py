"""Fusions that are weighed while a graph is lowered: taken or not, the numbers are the same.

table in the epilogue of products             by rows of the database where it holds both, else on paper
codes in the pass of a norm or a gate         on paper
a sum behind products of weights of few bits  on paper

Tuning measures both ways of the first, since it keeps what is asked for here (`tuning.Asking`).
"""

from dataclasses import replace
from typing import Any

from torch.fx import Node

from qcompiler.backends.tvm.families.base import Places
from qcompiler.passes.partition import Region
from qcompiler.passes.profit import Fusion, Measured, weigh


def table_behind(places: Places, region: Region, table: Region, alone: Any) -> Fusion | None:
    """Codes looked up before they are stored, against a pass over them; `alone` is the layer without it."""
    rows = [places.choose.row(layer) for layer in (replace(alone, table=True), alone)]
    found = [Measured(us=row.seconds * 1e6, spread=row.spread) for row in rows if row is not None]
    return weigh(
        "table", region.anchor, table.anchor, places.target, shape=places.shapes[region.anchor],
        measured=(found[0], found[1]) if len(found) == len(rows) else None,
    )  # fmt: skip


def behind(places: Places, kind: str, first: Node, second: Node) -> Fusion | None:
    return weigh(kind, first, second, places.target, shape=places.shapes[first])
