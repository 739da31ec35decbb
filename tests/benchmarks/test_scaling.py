"""The strong-scaling chart: what is counted of a step, and how rounds become speed-ups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.replicas import IO, WAYS, Counted, Work, allocated_at_most, bytes_written, storage_bytes
from benchmarks.scaling import ALONE, case, draw, page
from qcompiler.models.decoder import Shape


def counted(sent: int) -> Counted:
    return Counted(flops=2 * 10**9, held=4 * 10**6, peak=6 * 10**6, sent=sent, written=None)


def test_a_speed_up_is_the_median_over_rounds_and_counts_are_of_the_busiest() -> None:
    seconds = {ALONE: [1.0, 2.0, 6.0], (2, "int8"): [1.0, 1.0, 2.0]}
    found = case(2, "int8", [counted(1), counted(2)], seconds)
    assert (found["speed_up"], found["efficiency"], found["ms"]) == (2.0, 1.0, 1000.0)
    assert (found["sent"], found["peak"], found["written"]) == (2, 6 * 10**6, None)


def test_the_page_and_the_chart_tell_every_case(tmp_path: Path) -> None:
    seconds = {ALONE: [1.0], **{(2, way): [0.6] for way in WAYS}}
    shape = {"width": 8, "depth": 1, "positions": 4}
    result = {
        "cases": [case(*key, [counted(10**6)], seconds) for key in seconds], "shape": shape, "batch": 4,
        "parameters": 10**6, "rounds": 1, "device": "a machine", "commit": "a commit",
    }  # fmt: skip
    rows = page(result).splitlines()[-4:]
    assert [row.split(" | ")[1] for row in rows] == ["float", *WAYS]
    assert rows[1] == (
        "| 2 | float | 600 | 1.67x | 83% | 2.00 | 4.00 MB | 6.00 MB | 1.00 MB | - |"
    )  # fmt: skip
    draw(result, tmp_path / "chart.svg")
    drawn = (tmp_path / "chart.svg").read_text()
    assert all(f">{word}<" in drawn for word in ("ideal", "processes", "speed-up", *WAYS))


def test_what_a_step_allocates_at_its_highest_is_counted() -> None:
    def step() -> None:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        third = torch.empty(100)
        del second, third

    assert allocated_at_most(step, torch.device("cpu")) == 6000


def test_a_storage_that_tensors_share_counts_once() -> None:
    x = torch.empty(10)
    assert storage_bytes([x, x[2:], x.view(2, 5), torch.empty(3)]) == 52


@pytest.mark.skipif(not IO.exists(), reason="this kernel does not count what a process writes")
def test_the_kernel_counts_what_a_process_writes(tmp_path: Path) -> None:
    before = bytes_written()
    (tmp_path / "file").write_bytes(bytes(12345))
    after = bytes_written()
    assert before is not None and after is not None and 12345 <= after - before < 2 * 12345


def test_processes_share_one_batch_and_begin_with_the_same_weights() -> None:
    shape = Shape(vocabulary=8, width=8, hidden=8, depth=1, heads=1, kv_heads=1, positions=3)
    work = Work(shape=shape, batch=4)
    whole = work.rows(0, 1)
    assert whole.shape == (4, 4) and torch.equal(torch.cat([work.rows(rank, 2) for rank in range(2)]), whole)
    first, second = (torch.cat([p.detach().flatten() for p in work.model().parameters()]) for _ in range(2))
    assert torch.equal(first, second)
