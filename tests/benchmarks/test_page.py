"""From cells to the page and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.cells import Cell, cell_of, to_mapping, with_best
from benchmarks.contenders import BASELINE, CONTENDERS
from benchmarks.page import overview, page
from benchmarks.plot import draw
from benchmarks.worker import Prepared, Ready
from benchmarks.workloads import WORKLOADS
from qcompiler.tune.measure import Timing

BITS = {"ours": 8, "fast": 8, "small": 4, "float": 32}


def ran(contender: str, speed: float, sqnr_db: float, *, counts: bool = True) -> Cell:
    return Cell(
        workload="bert", contender=contender, speed=speed, ratios=(speed - 0.1, speed, speed + 0.1),
        milliseconds=10 / speed, sqnr_db=sqnr_db, agreement=0.5, counts=counts, megabytes=1.25,
        prepare_s=2.0, ready_s=0.5, memory_mb=None,
    )  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    cells = [
        ran("ours", 3.5, 29.5),
        ran("fast", 4.0, 20.25, counts=False),
        ran("small", 1.5, 14.0),
        ran("float", 1.0, float("inf")),
        Cell(workload="bert", contender="broken", status="failed", reason="ValueError: no kernel"),
        Cell(workload="bert", contender="absent", status="not installed", reason="Absent needs it"),
    ]
    bits = BITS | {"broken": 8, "absent": 8}
    made = {
        "commit": "abc",
        "machine": {"cpu": "A CPU", "features": ["avx512_vnni"]},
        "versions": {"torch": "2.0"},
        "protocol": {"threads": 1, "rounds": 3},
        "workloads": {"bert": {"title": "BERT", "floor_db": {8: 27.0}}},
        "contenders": {
            name: {"title": name.capitalize(), "bits": bits[name], "ours": name == "ours"} for name in bits
        },
        "cells": [to_mapping(cell) for cell in with_best(cells, bits)],
    }
    read: dict[str, Any] = json.loads(json.dumps(made, allow_nan=False))
    return read


def test_the_overview_says_who_is_fastest_and_who_does_not_count(result: dict[str, Any]) -> None:
    assert overview(result).splitlines() == [
        "|  | BERT |",
        "| --- | --- |",
        "| **Ours** | **3.50x** 29.5 dB |",
        "| Fast | (4.00x) 20.2 dB |",
        "| Small | **1.50x** 14.0 dB |",
        "| Float | **1.00x** exact |",
        "| Broken | failed [1] |",
        "| Absent | not installed |",
    ]


def test_the_page_gives_reasons_machine_and_spread(result: dict[str, Any]) -> None:
    text = page(result)
    assert "A CPU (avx512_vnni), commit abc, torch 2.0." in text
    assert "BERT 27 dB with 8 bits" in text
    assert "[1] ValueError: no kernel\n" in text
    assert "Not installed: Absent needs it." in text
    assert "| BERT | Ours | 2.86 | 3.40 to 3.60 | 50.0% | 1.2 | 2.0 | 0.5 | - |" in text


def test_a_workload_that_a_contender_does_not_run_is_a_dash(result: dict[str, Any]) -> None:
    result["workloads"]["resnet"] = {"title": "ResNet", "floor_db": {}}
    assert "| **Ours** | **3.50x** 29.5 dB | - |" in overview(result)


def test_the_picture_names_everybody_who_ran_and_is_the_same_each_time(
    result: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("one.svg", "two.svg"):
        draw(result, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    text = "".join(ElementTree.parse(tmp_path / "one.svg").getroot().itertext())
    assert [name for name in ("BERT", "Ours", "Fast", "Small", "4.00x", "20 dB") if name not in text] == []
    assert "Broken" not in text


@pytest.mark.parametrize(
    ("contender", "sqnr_db", "counts"),
    [("ours-int8", 26.9, False), ("ours-int8", 27.0, True), (BASELINE, 0.0, True)],
)
def test_a_speed_counts_from_the_floor_on(contender: str, sqnr_db: float, counts: bool) -> None:
    """BERT's floor is for eight bits: nothing is asked of float."""
    cell = cell_of(
        ("bert_base", WORKLOADS["bert_base"]), (contender, CONTENDERS[contender]), BASELINE,
        Timing(seconds={BASELINE: (0.2, 0.3, 0.4), contender: (0.1, 0.1, 0.1)}),
        Prepared(seconds=1.0, size=2_000_000),
        Ready(seconds=1.0, sqnr_db=sqnr_db, agreement=1.0, memory=10.0),
    )  # fmt: skip
    assert cell.counts is counts
    assert cell.megabytes == 2.0
