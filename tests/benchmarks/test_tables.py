"""The tables of workloads and contenders, and the data that they share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import store
from benchmarks.case import chunks, rotations
from benchmarks.contenders import BASELINE, CONTENDERS, digest
from benchmarks.peers.ort_nbits import NBits
from benchmarks.worker import Prepared
from benchmarks.workloads import WORKLOADS

SAMPLES: list[Any] = [(torch.tensor([number]), [torch.tensor([10 * number])]) for number in range(4)]


def test_every_workload_is_run_by_the_baseline_and_by_peers() -> None:
    for workload in WORKLOADS.values():
        assert workload.kind in CONTENDERS[BASELINE].kinds
        assert sum(workload.kind in contender.kinds for contender in CONTENDERS.values()) > 4


def test_test_batches_hold_every_sample_in_turn_nested_inputs_too() -> None:
    assert [first.tolist() for first, _ in rotations(SAMPLES, 3)] == [
        [0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]
    ]  # fmt: skip
    assert rotations(SAMPLES, 2)[3][1][0].tolist() == [30, 0]


def test_calibration_batches_hold_every_sample_once() -> None:
    assert [first.tolist() for first, _ in chunks(SAMPLES, 2)] == [[0, 1], [2, 3]]
    assert [first.tolist() for first, _ in chunks(SAMPLES, 3)] == [[0, 1, 2]]


def test_what_is_missing_is_named() -> None:
    contender = replace(CONTENDERS["openvino"], packages=("torch", "no_such_package"), programs=("no-such",))
    assert contender.missing() == ("no_such_package", "no-such")


def test_other_settings_are_prepared_anew() -> None:
    contender = CONTENDERS["onnxruntime-nbits4-32"]
    other = replace(contender, peer=NBits(bits=4, block=64))
    assert contender.fingerprint() == replace(contender).fingerprint() != other.fingerprint()
    assert digest("benchmarks/case.py") != digest("benchmarks/cells.py")


@pytest.mark.parametrize("size", [7, None])
def test_what_was_prepared_is_known_as_long_as_nothing_changes(tmp_path: Path, size: int | None) -> None:
    prepared = Prepared(seconds=1.5, size=size)
    assert store.noted(tmp_path, "this") is None
    store.note(tmp_path, "this", prepared)
    assert store.noted(tmp_path, "this") == prepared
    assert store.noted(tmp_path, "that") is None
