"""Training large models on a GPU: the same code on a CPU, who is prepared with whom, and what is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks import gpu_training
from benchmarks.gpu_training import Settings, case, draw, groups, kept, measure, page, targets
from benchmarks.large import LARGE, SMALL
from benchmarks.process import Lost
from benchmarks.trainee import BASELINE, CONTENDERS, REFERENCE, Figures, Work
from qcompiler.progress import silent
from qcompiler.tune.measure import Timing

GB = 10**9
PROMISED = 0.2  # of the gradient in 4 bits


def figures(held: int, peak: int, few: int | None = None) -> Figures:
    return Figures(
        held=held, peak=peak, left=GB, crossing=held, crossing_before=2 * held, few=few, products=9, loss=1.0,
        gradient=0.1, ready=60.0,
    )  # fmt: skip


def cases(ours: dict[str, tuple[float, Figures]]) -> list[dict[str, Any]]:
    """The baseline's step takes 0.1 s, holds 12 GB and has a peak of 15 GB."""
    everybody = {BASELINE: (0.1, figures(12 * GB, 15 * GB)), **ours}
    timing = Timing(seconds={name: (seconds,) for name, (seconds, _) in everybody.items()})
    return [case("vit_b", name, found, timing, "") for name, (_, found) in everybody.items()]


def settings(tmp_path: Path) -> Settings:
    return Settings(device="cpu", small=True, rounds=2, slice=0.01, patience=600, log=tmp_path / "log")


def test_a_step_in_4_bits_holds_less_and_its_gradient_is_near_float32s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # for the processes that it starts
    float32, act4 = measure((REFERENCE, "act4"), "llama_1b", settings(tmp_path), silent)
    assert (float32["reason"], act4["reason"]) == ("", "")
    assert float32["gradient"] == 0 < act4["gradient"] < PROMISED
    assert act4["loss"] == pytest.approx(float32["loss"], rel=2**-8)  # bfloat16's rounding
    assert act4["crossing"] < act4["crossing_before"] / 1.5
    assert act4["left"] < act4["peak"] < float32["peak"]
    assert len(act4["seconds"]) == 2 and act4["slower"] is None


class Process:
    """Is ready, unless it is one of two that find no memory or cannot be compiled; then 0.1 s a step."""

    started: ClassVar[list[str]] = []

    def __init__(self, train: object, work: Work, *, cores: list[int], log: Path) -> None:
        again = work.contender in self.started
        self.started.append(work.contender)
        self.failure = {"act8": "OutOfMemoryError: CUDA out of memory", "act4": "PlanError: no"}
        self.failure = {} if again and work.contender == "act8" else self.failure
        self.name, self.answers = work.contender, [figures(GB, GB), 0.1, 0.1]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *raised: object) -> None:
        return None

    def close(self) -> None:
        return None

    def send(self, message: Any) -> None:
        return None

    def receive(self, *, patience: float) -> Any:
        if self.name in self.failure:
            raise Lost(self.failure[self.name])
        return self.answers.pop(0)


def test_who_found_no_memory_is_tried_once_more_and_who_failed_is_a_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Process, "started", [])
    monkeypatch.setattr(gpu_training, "Worker", Process)
    names = (REFERENCE, BASELINE, "act8", "act4", "int8, act8")
    found = measure(names, "vit_b", settings(tmp_path), silent)
    assert Process.started == [REFERENCE, BASELINE, "act8", "act4", "int8, act8", "act8"]
    assert [each["reason"] for each in found] == ["", "", "", "PlanError: no", ""]
    assert [each["slower"] for each in found] == [1.0, 1.0, 1.0, None, 1.0]


def test_what_measures_by_itself_is_prepared_alone_and_the_reference_first() -> None:
    first, together, *alone = groups([*CONTENDERS])
    assert first == [REFERENCE]
    assert BASELINE in together and len(together) + len(alone) == len(CONTENDERS) - 1
    assert all(CONTENDERS[name].measures for (name,) in alone)


def test_targets_are_met_by_bytes_and_time_together() -> None:
    found = targets(cases({
        "act8": (0.1, figures(6 * GB, 8 * GB)),
        "act4": (0.105, figures(4 * GB, 6 * GB)),
        "planned, half of the peak": (0.12, figures(3 * GB, 4 * GB)),
        "int8, act8": (0.09, figures(6 * GB, 8 * GB, few=3)),
        "fp8-hybrid, act8": (0.2, figures(6 * GB, 8 * GB, few=9)),
    }))  # fmt: skip
    assert [(name, verdict) for _, name, _, _, verdict in found] == [
        ("act8", "not met"), ("act8", "not met"),
        ("act4", "met"), ("act4", "not met"),
        ("planned, half of the peak", "not met"), ("planned, half of the peak", "not met"),
        ("int8, act8", "met"), ("fp8-hybrid, act8", "not met"),
    ]  # fmt: skip
    assert found[2][3] == "3.00x below at 1.05x the time"
    (none,) = targets(cases({"int8, act8": (0.1, figures(GB, GB, few=0))}))
    assert none[-1] == "none was selected"


def test_the_page_and_the_picture_tell_every_case_and_why_one_failed(tmp_path: Path) -> None:
    found = cases({"act4": (0.105, figures(4 * GB, 6 * GB))})
    found.append(case("vit_b", "act8", None, Timing(seconds={}), "OutOfMemoryError: no memory"))
    result = {
        "device": "a GPU", "commit": "a commit", "versions": {"torch": "2"}, "rounds": 1,
        "models": {"vit_b": "ViT"}, "cases": found,
    }  # fmt: skip
    told = page(result)
    assert (
        "| act4 | 105.0 | 1.05x | 4.00 GB | 3.00x | 6.00 GB | 2.50x | 1.00 GB | 8.00 GB -> 4.00 GB | - |"
        " 1.0000 | 0.1000 | 60 s |"
    ) in told
    assert told.count("OutOfMemoryError: no memory") == 3  # and beside both targets
    draw(result, tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    assert f">{BASELINE}<" in drawn and ">act4<" in drawn and ">act8<" not in drawn


def test_models_of_another_run_stay_if_it_was_the_same_code_on_the_same_device(tmp_path: Path) -> None:
    out, head = tmp_path / "result.json", {"commit": "a commit", "device": "a GPU"}
    assert kept(out, head, ["vit_b"]) == []
    out.write_text(json.dumps({**head, "cases": [{"model": "vit_b"}, {"model": "resnet50"}]}))
    assert kept(out, head, ["vit_b"]) == [{"model": "resnet50"}]
    assert kept(out, {**head, "commit": "another"}, ["vit_b"]) == []


def test_without_a_gpu_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_training"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^There is no GPU here .*\.$"):
        gpu_training.main()


def test_small_models_are_those_of_the_large_ones() -> None:
    assert [(name, each.layer) for name, each in SMALL.items()] == [
        (name, each.layer) for name, each in LARGE.items()
    ]
