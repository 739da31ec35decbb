"""Fusions that were weighed: what both ways take, by whom, and which was taken.

`data["fusions"]` holds them, refused ones first; it is empty where an engine fuses by itself.
"""

from collections.abc import Mapping
from typing import Any

from qcompiler.report.summary import rows
from qcompiler.report.words import called, duration, some


def fusions(data: Mapping[str, Any]) -> list[str]:
    """One sentence for each kind and pair of figures."""
    return [sentence(row) for row in rows(data, "fusions")]


def sentence(row: Mapping[str, Any]) -> str:
    """refused: table at conv_3 and 2 more, 16.1 us fused, 14.9 us apart (database)"""
    verdict = "taken" if row.get("taken") else "refused"
    figures = f"{duration(row.get('fused_us'), 'µs')} fused, {duration(row.get('apart_us'), 'µs')} apart"
    where = some(row.get("where") or (), 1)
    return f"{verdict}: {called(row.get('kind'))} at {where}, {figures} ({called(row.get('source'))})"
