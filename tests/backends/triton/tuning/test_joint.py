"""The linears of a model decide together: each is charged with what really runs around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf

import pytest

from qcompiler.backends.triton.decisions import Linear
from qcompiler.backends.triton.engine.readings import Reading
from qcompiler.backends.triton.tuning.asked import problem_of, problems_of, quantizer_of
from qcompiler.backends.triton.tuning.device import DEVICES
from qcompiler.backends.triton.tuning.families import FLOAT, space, written
from qcompiler.backends.triton.tuning.joint import names_at
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.schedules import Schedules, schedules_of
from qcompiler.backends.triton.tuning.tuner import versions
from qcompiler.tune.database import Row

H100 = DEVICES[0]
M = 1024
UP = Linear(format="int8", N=2048, K=512)
DOWN = Linear(format="int8", N=512, K=2048)
ROWS, SCALE = Reading(by="rows", x="bf16", readers=(UP,)), Reading(by="scale", x="bf16", readers=(UP,))
HANDED = Reading(by="scale", x="bf16", readers=(DOWN,), maker=UP)
CALIBRATED: Mapping[Reading, int] = {SCALE: 1, HANDED: 1}

Times = Mapping[Problem, Mapping[str, float]]
"""Microseconds: of ours by "ours", of peers by their names."""


def schedules(times: Times) -> Schedules:
    def row(problem: Problem, name: str, us: float) -> Row:
        contender = written(space(problem, 90)[0]) if name == "ours" else name
        return Row(
            workload=problem.text, configuration=contender, isa=H100.core.isa,
            processor=H100.core.processor, seconds=us * 1e-6, spread=0.0, rounds=3,
            **versions(problem, contender),
        )  # fmt: skip

    rows = [row(problem, name, us) for problem, found in times.items() for name, us in found.items()]
    return schedules_of(rows, H100.core, H100.capability)


def times(
    up: float = 90, handing: float = 92, down: float = 90, by_scale: float = 20, again: float = 20,
    **peers: float,
) -> Times:  # fmt: skip
    """Floats take 100, and the passes before both linears as long as they are told to."""
    return {
        problem_of(UP, M): {FLOAT: 100, "ours": up, **peers},
        problem_of(UP, M, codes=True): {FLOAT: 120, "ours": handing},
        problem_of(DOWN, M): {FLOAT: 100, "ours": down},
        quantizer_of(SCALE, M): {FLOAT: 50, "ours": by_scale},
        quantizer_of(HANDED, M): {FLOAT: 50, "ours": again},
    }


def names(found: Times, readings: Mapping[Reading, int] = CALIBRATED) -> list[str]:
    return [*names_at(readings, M, schedules(found)).values()]


def test_codes_that_the_product_before_hands_on_cost_nothing() -> None:
    """95 of 100 are accepted: 90 and 2 for the pass, and 90 and 2 that the first takes longer as codes."""
    assert names(times(by_scale=2)) == ["int8_linear", "int8_linear"]


def test_where_the_product_before_is_float_the_pass_is_charged() -> None:
    """Its own pass takes too long, so it goes to floats; then nobody hands codes to the second."""
    assert names(times(by_scale=20, again=20)) == [FLOAT, FLOAT]
    assert names(times(by_scale=20, again=2)) == [FLOAT, "int8_linear"]


def test_where_the_reader_is_float_results_do_not_go_on_as_codes() -> None:
    """Who reads codes pays for what the product before takes longer to write them: 9 beside its own 90."""
    assert names(times(handing=99, down=90, by_scale=2)) == ["int8_linear", FLOAT]
    assert names(times(handing=99, down=80, by_scale=2)) == ["int8_linear", "int8_linear"]


def test_a_vendor_is_charged_with_the_pass_that_it_makes_necessary() -> None:
    assert names(times(by_scale=2, again=20, int_mm=80)) == ["int8_linear", "int8_linear"]
    assert names(times(by_scale=2, again=4, int_mm=80)) == ["int_mm", "int8_linear"]


def test_a_vendor_that_spares_what_comes_behind_is_weighed_before_anyone_goes_to_floats() -> None:
    """With our own product before, codes would cost the second 40; the vendor's leaves a pass of 3 to it."""
    assert names(times(handing=130, by_scale=2, again=3, int_mm=89)) == ["int_mm", "int8_linear"]


def test_who_waits_for_what_was_refused_is_computed_in_floats() -> None:
    """It was tried, so defaults, which would run it, have no say."""
    fine = times(by_scale=2)
    for refused, wanted in (
        (quantizer_of(SCALE, M), [FLOAT, "int8_linear"]),
        (problem_of(UP, M, codes=True), ["int8_linear", FLOAT]),
        (problem_of(DOWN, M), ["int8_linear", FLOAT]),
    ):
        found = times(by_scale=2, again=2)
        assert names({**found, refused: {**found[refused], "ours": inf}}) == wanted, refused.text
    assert names(fine) == ["int8_linear", "int8_linear"]


def test_a_pass_is_divided_among_those_that_share_it() -> None:
    """30 for three that save 16 each, of which one alone could pay none; as fewer share it, it is dearer."""
    linears = [Linear(format="int8", N=n, K=512) for n in (256, 512, 1024)]
    shared = Reading(by="rows", x="bf16", readers=(*linears,))
    found: dict[Problem, Mapping[str, float]] = {quantizer_of(shared, M): {"ours": 30}}
    for linear in linears:
        found[problem_of(linear, M)] = {FLOAT: 100, "ours": 84}
    assert names(found, {shared: 1}) == ["int8_linear"] * 3
    found[problem_of(linears[0], M)] = {FLOAT: 100, "ours": 90}
    assert names(found, {shared: 1}) == [FLOAT] * 3, "15 for each of two is too much"
    assert names(found, {replace(shared, readers=(linears[1],)): 1}) == [FLOAT]


def test_maxima_that_the_product_before_brings_make_another_pass() -> None:
    up = replace(UP, N=8192, heavy=True)
    down = replace(DOWN, K=8192)
    behind = Reading(by="rows", x="bf16", readers=(down,), maker=up)
    readings = {replace(ROWS, readers=(up,)): 1, behind: 1}
    found: dict[Problem, Mapping[str, float]] = {
        problem_of(up, M): {FLOAT: 100, "ours": 80},
        problem_of(down, M): {FLOAT: 100, "ours": 80},
        quantizer_of(ROWS, M): {"ours": 2},
        quantizer_of(behind, M): {"ours": 30},
        quantizer_of(behind, M, maxima=True): {"ours": 2},
    }
    assert names(found, readings) == ["int8_linear", "int8_linear"]
    found[problem_of(up, M)] = {FLOAT: 100, "ours": 99}
    assert names(found, readings) == [FLOAT, FLOAT]


def test_equal_linears_decide_alike_by_the_mean_of_where_they_are() -> None:
    """Two of three get their codes from the product before: 20 for the third is 7 for each."""
    again = replace(HANDED, readers=(UP,))
    found = times(up=80, handing=80)
    assert names(found, {SCALE: 1}) == [FLOAT]
    assert names(found, {SCALE: 1, again: 2}) == ["int8_linear"]


def test_nothing_is_decided_by_halves() -> None:
    """Without the pass, without float, or as it goes on unmeasured: then defaults decide."""
    whole = times(by_scale=2)
    assert len(names(whole)) == 2
    for problem in whole:
        assert len(names({one: found for one, found in whole.items() if one != problem})) < 2, problem.text
    assert names({**whole, problem_of(DOWN, M): {"ours": 90}}) == ["int8_linear"]
    few = Linear(format="w4h_g128", N=512, K=512)
    assert names({}, {Reading(by="floats", x="bf16", readers=(few,)): 1}) == []


@pytest.mark.parametrize(
    ("readings", "linear", "wanted"),
    [
        ({ROWS: 1}, UP, ["int8_linear, int8, M 1024, N 2048, K 512, bf16", "quantize_rows, int8"]),
        (
            CALIBRATED, UP,
            ["int8_linear, int8, M 1024, N 2048, K 512, bf16",
             "int8_linear, int8, M 1024, N 2048, K 512, bf16, heavy", "quantize_by_scale, int8"],
        ),
        (
            CALIBRATED, DOWN,
            ["int8_linear, int8, M 1024, N 512, K 2048, bf16", "quantize_by_scale, int8, M 1024, K 2048"],
        ),
        (
            {Reading(by="rows", x="fp16", readers=(DOWN,), maker=UP): 1}, DOWN,
            ["int8_linear, int8, M 1024, N 512", "quantize_rows, int8, M 1024, K 2048, fp16",
             "quantize_by_amax, int8, M 1024, K 2048, fp16"],
        ),
    ],
)  # fmt: skip
def test_all_that_may_run_is_asked(
    readings: Mapping[Reading, int], linear: Linear, wanted: list[str]
) -> None:
    found = [problem.text for problem in problems_of(linear, readings, M)]
    assert len(found) == len(wanted)
    assert all(one.startswith(text) for one, text in zip(found, wanted, strict=True))
