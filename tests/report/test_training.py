"""The report of a training: what it claims, and that nothing which is missing breaks it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from rich.console import Console

from qcompiler.report.training import page, summarize, table

HOSTILE = "<script>alert('$x$')</script>"


def learner(above: float) -> dict[str, Any]:
    losses = [2.0 - 0.1 * i + above for i in range(10)]
    return {
        "losses": losses, "validation": [[0, 2.1], [5, 1.6 + above], [10, 1.2 + above]],
        "training_loss": losses[-1], "validation_loss": 1.2 + above, "seconds_per_step": 0.01,
        "steps_timed": 9, "state_bytes": 8e6,
    }  # fmt: skip


def sample() -> dict[str, Any]:
    return {
        "task": "bert", "setting": "int8, act4", "unit": "nats", "steps": 10, "done": 10, "failure": "",
        "start": "hidden characters", "learners": {"float": learner(0.0), "int8, act4": learner(0.01)},
        "gap": {"mean": 0.01, "error": 0.004, "allowed": 0.03},
        "memory": {"crosses": 10**6, "crosses_float": 7 * 10**6, "peak": 4 * 10**6, "peak_float": 9 * 10**6},
        "graphs": [{
            "values": [
                {"name": "gelu", "shape": [16, 64], "bits": 4, "bytes": 4096, "stored": 528, "why": ""}
            ],
            "products": [{"role": "forward", "of": "fc", "formats": "int8 x int8", "why": ""}],
            "crosses_float": 4096, "again": [], "gradient": 0.1,
            "gradients": [{"of": "fc.weight", "distance": 0.125}, {"of": "fc.bias", "distance": None}],
            "unchecked": "", "slow": "",
        }],
        "manifest": {"recipe": "int8"},
    }  # fmt: skip


def text(data: dict[str, Any]) -> str:
    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(table(data))
    return captured.get()


def test_the_time_of_a_step_says_of_how_many_steps_it_is() -> None:
    assert "seconds per step, median of 9 steps after the first" in text(sample())
    assert "median of 9 steps after the first" in page(sample())


def test_the_headline_and_the_verdict() -> None:
    summary = summarize(sample())
    assert summary.verdict == "Passed: the first gradient and the validation loss"
    assert summary.headline == (
        "bert in int8, act4: validation loss 1.210 nats after 10 steps, +0.010 ± 0.004 against float"
    )


@pytest.mark.parametrize(
    ("change", "concern"),
    [
        ({"gap": {"mean": 0.05, "error": None, "allowed": 0.03}}, "is 0.050 above float's, and may be 0.03"),
        ({"done": 4}, "it was stopped after 4 of 10 steps"),
        ({"done": 4, "failure": "the loss of float is nan"}, "the loss of float is nan"),
        ({"learners": {"int8, act4": {**learner(0.0), "validation": [[0, 1.0], [10, 1.2]]}}}, "did not fall"),
        ({"graphs": [{"unchecked": "inputs share memory"}]}, "because inputs share memory"),
    ],
)
def test_what_needs_a_look(change: dict[str, Any], concern: str) -> None:
    found = sample() | change
    assert concern in " ".join(summarize(found).concerns)
    assert concern in " ".join(text(found).split()) and concern in page(found).replace("&#39;", "'")


def test_the_page_shows_the_curves_and_the_tables() -> None:
    shown = page(sample())
    for part in ("float, training", "int8, act4, validation", "16 × 64", "int8 x int8", "7.000", "0.001"):
        assert part in shown
    assert shown == page(sample())
    assert "http" not in shown and "src=" not in shown


def test_names_are_text_and_never_markup() -> None:
    data = sample() | {"task": HOSTILE, "unit": HOSTILE, "failure": HOSTILE, "start": HOSTILE}
    data["graphs"][0]["values"][0]["name"] = data["graphs"][0]["products"][0]["of"] = HOSTILE
    data["learners"] = {HOSTILE: learner(0.0), "int8, act4": learner(0.0)}
    assert HOSTILE not in page(data)


@pytest.mark.parametrize("key", sample())
@pytest.mark.parametrize("is_none", [pytest.param(True, marks=pytest.mark.thorough), False])
def test_what_is_missing_breaks_nothing(key: str, is_none: bool) -> None:
    data = copy.deepcopy(sample())
    data.pop(key)
    if is_none:
        data[key] = None
    assert page(data).endswith("</html>") and text(data)


def test_where_no_step_was_taken_nothing_is_claimed() -> None:
    empty = dict.fromkeys(learner(0.0)) | {"losses": [], "validation": []}
    data = sample() | {"done": 0, "learners": {"float": empty, "int8, act4": empty}, "gap": {}, "graphs": []}
    data["memory"] = {}
    assert "no step was taken" in summarize(data).headline and not summarize(data).assurances
    assert "No step was taken." in page(data)
    assert page({}).endswith("</html>") and "no step was taken" in text({})


def test_columns_captions_and_tables_are_those_of_what_there_is() -> None:
    """No column of reasons where nothing has one, no bold validation where there is none."""
    found = sample()
    shown = page(found)
    assert "Why in float" not in shown and "Why as it is" not in shown
    assert "0.125" in shown and "nothing in float" in shown and "validation bold" in shown
    found["graphs"][0] |= {"gradients": [], "gradient": None, "unchecked": "it was not wanted"}
    found["graphs"][0]["products"][0] |= {"formats": "float", "why": "int8 is not faster"}
    for row in found["learners"].values():
        row |= {"validation": [], "validation_loss": None}
    shown = page(found)
    assert "Why in float" in shown and "Not compared with float, because it was not wanted" in shown
    assert "validation bold" not in shown and "no validation batches were given" in shown
