"""What `qcompiler tune` refused, and by how much: candidates without code, or with wrong numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from qcompiler.cli.screen import show

if TYPE_CHECKING:
    from qcompiler.tune.database import Row

WIDEST = 60  # letters of a candidate; the trace of a schedule has thousands


def figures(rows: "Iterable[Row]") -> list[dict[str, Any]]:
    """As plain values; rows of older files have no reason."""
    return [
        {"workload": row.workload, "candidate": row.configuration, "reason": row.reason or "nobody wrote why"}
        for row in rows
    ]


def draw(refused: Sequence[Mapping[str, Any]]) -> None:
    """Each candidate with each of its reasons, and of how many problems that was."""
    if not refused:
        return
    table = Table(box=None, pad_edge=False)
    for name in ("refused", "why"):
        table.add_column(name, overflow="fold", header_style="dim")
    table.add_column("problems", justify="right", header_style="dim")
    found = Counter((one["candidate"], one["reason"]) for one in refused)
    for (candidate, reason), count in found.most_common():
        name = candidate if len(candidate) <= WIDEST else f"{candidate[: WIDEST - 3]}..."
        table.add_row(Text(name), Text(reason), str(count))
    show(table)
