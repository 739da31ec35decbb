"""A model of regions in sentences: what runs each region, where torch runs, where the graph broke.

The terminal and the page both show these; `data["regions"]` is missing for a model of one graph.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from qcompiler.report.summary import ENGINES, part, rows
from qcompiler.report.words import called, duration, is_number, percent, plural, some


def regions(data: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Title and lines; empty ones are left out."""
    found = part(data, "regions")
    uncaptured = found.get("uncaptured") or ()
    sections = (
        ("Regions", [region_line(row) for row in rows(found, "regions")]),
        ("Islands", [island_line(row) for row in rows(found, "islands")]),
        ("Breaks", [break_line(row) for row in rows(found, "breaks")]),
        ("Python", [f"{some(uncaptured, 3)}: in no region, so in float"] if uncaptured else []),
    )
    return (section for section in sections if section[1])


def region_line(row: Mapping[str, Any]) -> str:
    """region 0 at model.py:12: 3 layers in integers, on ONNX Runtime; 12 calls calibrating, 8 compiled"""
    calls = part(row, "calls")
    counted = ", ".join(f"{count} {called(what)}" for what, count in calls.items()) or "no call"
    layers = row.get("layers_in_integers")
    engines = " and ".join(ENGINES.get(str(name), called(name)) for name in row.get("runs_on") or ())
    because = f", because {called(row['why'])}" if row.get("why") else ""
    state = (
        f"{plural(layers, 'layer')} in integers, on {engines}"
        if row.get("state") == "compiled" and isinstance(layers, int)
        else called(row.get("state")) + because
    )
    share = f"; {percent(row['share'], 0)} of the time" if is_number(row.get("share")) else ""
    return f"{called(row.get('name'))} at {called(row.get('source'))}: {state}; calls: {counted}{share}"


def island_line(row: Mapping[str, Any]) -> str:
    """mylib.nms at model.py:20: torch, 14 us (9 % of region 0), because ..."""
    ops, share = some(row.get("ops") or (), 3), percent(row.get("share"), 0)
    cost = f"{duration(row.get('time_us'), 'us')} ({share} of {called(row.get('region'))})"
    return f"{ops} at {called(row.get('source'))}: torch, {cost}, because {called(row.get('why'))}"


def break_line(row: Mapping[str, Any]) -> str:
    return f"{called(row.get('where'))} ({called(row.get('code'))}): {called(row.get('reason'))}"
