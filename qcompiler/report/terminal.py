"""The report in a terminal: the headline, what to look at, and one line per topic."""

import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qcompiler.report.fusions import fusions
from qcompiler.report.regions import regions
from qcompiler.report.summary import given_up, refusals, rows, summarize
from qcompiler.report.words import cut, decibel, duration, plural, shorten, some

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 100
FIRST = 3  # of a list, so many are shown and the rest is counted
REASON = 85  # letters that a line has beside its title

COLOURS = {"pass": "green", "warn": "yellow", "unknown": "default"}


def renderable(data: Mapping[str, Any]) -> "RenderableType":
    """What `rich.print` shows in colour. Names are text and never markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    summary = summarize(data)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    if summary.concerns:
        lines = first([cut(concern, 2 * REASON) for concern in summary.concerns])
        table.add_row("Look at", Text("\n".join(lines), style=COLOURS["warn"]))
    for card in summary.cards:
        line = Text(card.figure, style=COLOURS[card.level])
        if card.lines:
            line.append(f": {'; '.join(card.lines)}", "default")
        table.add_row(card.title.removesuffix(" to the reference"), line)
    for title, lines in lists(data):
        table.add_row(title, Text("\n".join(lines)))
    return Group(Text(f"{summary.headline}\n", style=f"bold {COLOURS[summary.level]}"), table)


def lists(data: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Title and lines of regions, of what was given up and what was refused; empty ones are left out."""
    if tried := rows(data, "engines"):
        yield "Engines", [engine(row) for row in tried]
    for title, told in regions(data):
        yield title, first([cut(line, 2 * REASON) for line in told])
    if told := fusions(data):
        yield "Fusions", first([cut(line, 2 * REASON) for line in told])
    surrendered, groups = given_up(data), refusals(data)
    if surrendered:
        count = sum(len(labels) for labels, _ in surrendered)
        lines = [cut(f"{some(labels, 1)}: {why}", REASON) for labels, why in surrendered]
        yield "Given up", [f"{plural(count, 'layer')} back to float", *first(lines)]
    if groups:
        count = sum(group.count for group in groups)
        lines = [
            cut(f"{shorten(group.rule)} ({group.count}): {next(iter(group.reasons))}", REASON)
            for group in groups
        ]
        yield "Refused", [plural(count, "rewrite"), *first(lines)]


def engine(row: Mapping[str, Any]) -> str:
    """One engine that was tried: its time and error, or why it was not."""
    if row.get("why"):
        return cut(f"{row['backend']}: {row['why']}", 2 * REASON)
    kept = ", kept" if row.get("kept") else ""
    return f"{row.get('backend')}: {duration(row.get('ms'), 'ms')}, {decibel(row.get('sqnr_db'))}{kept}"


def first(lines: list[str]) -> list[str]:
    rest = len(lines) - FIRST
    return [*lines[:FIRST], *([f"and {rest:,} more"] if rest > 0 else [])]


def text(data: Mapping[str, Any]) -> str:
    """The same without colour, at one width, whatever the terminal and its environment say."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out,
        width=WIDTH,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
    )
    console.print(renderable(data))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
