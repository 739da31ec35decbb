"""The linears of a model: measured at some numbers of rows, and between those that disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.decisions import Linear
from qcompiler.backends.triton.engine.readings import Reading
from qcompiler.backends.triton.tuning.asked import problem_of
from qcompiler.backends.triton.tuning.compiling import Verdict
from qcompiler.backends.triton.tuning.contest import MAKERS
from qcompiler.backends.triton.tuning.decided import table
from qcompiler.backends.triton.tuning.device import DEVICES
from qcompiler.backends.triton.tuning.families import FAMILIES, space, written
from qcompiler.backends.triton.tuning.model import Tuned, tune_linears, tuned_by
from qcompiler.backends.triton.tuning.problem import Problem, parsed
from qcompiler.backends.triton.tuning.schedules import schedules_of
from qcompiler.tune.database import Core, Database, Row, open_database
from tests.backends.triton.tuning.test_tuner import Planned, fit

H100 = DEVICES[0]
LINEAR = Linear(format="int8", N=4096, K=1024)
READ = {Reading(by="rows", x="bf16", readers=(LINEAR,)): 1}
OPS = ("int8_linear", "quantize_rows")
TURN = 200  # rows from which on our kernel is the faster


class ByRows(Planned):
    """A bench on which ours are the faster from `TURN` rows on."""

    def __call__(self, problem: Problem, fit: Mapping[str, Configuration], peers: Sequence[str]) -> ByRows:
        ours = 1e-6 if problem.op == "quantize_rows" else 9e-5 if problem.M >= TURN else 2e-4
        self.seconds = lambda name: 1e-4 if name in peers else ours
        self.asked += [f"{problem.M} {name}" for name in (*fit, *peers)]
        return self


def tuned(path: Path, bench: ByRows, *rows: int) -> Tuned:
    with open_database(path) as database:
        assert tune_linears(READ, database, H100, fit, bench, rows=rows, trials=2) == 0
        return tuned_by(READ, (), database.rows(), H100)


def test_the_border_is_sought_between_rows_that_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many probes there are, the database is read once."""
    read, whole = list[Core | None](), Database.rows

    def counted(self: Database, core: Core | None = None) -> list[Row]:
        read.append(core)
        return whole(self, core)

    monkeypatch.setattr(Database, "rows", counted)
    bench = ByRows(seconds=lambda name: 1.0)
    found = tuned(tmp_path / "rows.db", bench, 16, 64, 1024)
    assert read == [H100.core, None], "and once more to tell of it"
    made = found.table[LINEAR]
    assert made.measured and made.names == ("float", "int8_linear")
    assert abs(made.borders[0] - TURN) <= 16
    told = {one.M: one for one in found.chosen if one.name == str(LINEAR)}
    passes = {one.M: one.us for one in found.chosen if one.name == "quantize_rows, int8, K 1024, bf16"}
    assert passes == dict.fromkeys(told, pytest.approx(1.0))
    assert told[16].contender == "float" and told[16].of_roofline is None and told[16].ratio == 1.0
    assert told[1024].ratio == pytest.approx(1e-4 / 9e-5)
    arithmetic = 2 * 1024 * LINEAR.N * LINEAR.K / H100.rates["int8"]
    memory = ((1024 + LINEAR.N) * LINEAR.K + 2 * 1024 * LINEAR.N) / H100.bandwidth
    assert told[1024].of_roofline == pytest.approx(max(arithmetic, memory) / 9e-5)
    assert made.choose(64) == "float" and made.choose(1024) == "int8_linear"
    assert {int(asked.split()[0]) for asked in bench.asked} > {16, 64, 1024}
    again = ByRows(seconds=lambda name: 1.0)
    assert tuned(tmp_path / "rows.db", again, 16, 64, 1024).table == found.table and again.asked == []


def test_a_search_that_time_ends_is_left_and_gone_on_with(tmp_path: Path) -> None:
    """What was measured before the end is kept, and another run has the border."""
    now, path = 0.0, tmp_path / "rows.db"

    class Timed(ByRows):
        """From the third number of rows on, the time is over when a problem is done."""

        def __call__(
            self, problem: Problem, fit: Mapping[str, Configuration], peers: Sequence[str]
        ) -> ByRows:
            nonlocal now
            now += problem.M not in (16, 1024)
            return super().__call__(problem, fit, peers)

    with open_database(path) as database:
        left = tune_linears(
            READ, database, H100, fit, Timed(seconds=lambda name: 1.0), rows=(16, 1024), trials=2,
            until=0.5, clock=lambda: now,
        )  # fmt: skip
    again = ByRows(seconds=lambda name: 1.0)
    whole = tuned(path, again, 16, 1024)
    seen = {int(asked.split()[0]) for asked in again.asked}
    assert left == 1 and 520 in seen and not seen & {16, 1024}, "of 520 rows the codes were left"
    assert abs(whole.table[LINEAR].borders[0] - TURN) <= 16


def test_problems_of_other_ops_are_measured_beside_linears(tmp_path: Path) -> None:
    norm = Problem(op="norm_quantize", scheme="int8 rms", M=512, N=0, K=1024)
    bench = Planned(seconds=lambda name: 1e-5)
    with open_database(tmp_path / "rows.db") as database:
        tune_linears({}, database, H100, fit, bench, rows=(), beside=[norm], trials=2)
        assert {row.workload for row in database.rows()} == {norm.text}
        found = tuned_by({}, [norm], database.rows(), H100)
    assert [(one.name, one.M) for one in found.chosen] == [("norm_quantize, int8 rms, K 1024, bf16", 512)]


def test_rows_of_other_linears_and_kernels_decide_nothing(tmp_path: Path) -> None:
    with open_database(tmp_path / "rows.db") as database:
        tune_linears(READ, database, H100, fit, ByRows(seconds=lambda name: 1.0), rows=(16,), trials=2)
        rows = database.rows()
    found = schedules_of(rows, H100.core, H100.capability)
    other = Linear(format="int8", N=1024, K=4096)
    both = READ | {Reading(by="rows", x="bf16", readers=(other,)): 2}
    assert [*table(both, found)] == [LINEAR]
    problem = parsed(rows[0].workload)
    assert problem is not None and problem == problem_of(LINEAR, 16)
    aged = [replace(row, compiler="triton 2.0, source 0") for row in rows]
    assert table(READ, schedules_of(aged, H100.core, H100.capability)) == {}


def test_what_was_refused_is_told_with_its_reason_even_where_nothing_of_ours_ran(tmp_path: Path) -> None:
    """The codes' candidates are told of as well as the products'."""

    def spilling(problem: Problem, candidates: Sequence[Configuration]) -> list[Verdict]:
        why = f"255 registers a thread in {problem.op}, 168 are allowed"
        return [Verdict(configuration=one, fault=why) for one in candidates]

    with open_database(tmp_path / "rows.db") as database:
        bench = ByRows(seconds=lambda name: 1.0, wrong=frozenset({"int_mm"}))
        tune_linears(READ, database, H100, spilling, bench, rows=(16,), trials=2)
        found = tuned_by(READ, (), database.rows(), H100)
    told = {row.workload.partition(",")[0]: row.reason for row in found.refused if row.reason[0] == "2"}
    assert told == {op: f"255 registers a thread in {op}, 168 are allowed" for op in OPS}
    assert {row.reason for row in found.refused if row.configuration == "int_mm"} == {
        "it ran wrong: its sums are wrong"
    }


@pytest.mark.parametrize("is_wrong", [False, True])
def test_weights_of_few_bits_are_tuned_and_floats_are_for_what_is_wrong(
    tmp_path: Path, is_wrong: bool
) -> None:
    """They save memory, which a float product would undo: it is taken where nothing else is right."""
    linear = Linear(format="w4h_g128", N=4096, K=4096)
    every = {written(one) for M in (1, 64) for one in space(problem_of(linear, M), 90)}
    slow = Planned(
        seconds=lambda name: 1e-4 if name in every else 1e-5, wrong=frozenset(every if is_wrong else ())
    )
    with open_database(tmp_path / "rows.db") as database:
        few = {Reading(by="floats", x="bf16", readers=(linear,)): 1}
        tune_linears(few, database, H100, fit, slow, rows=(1, 64), trials=2)
        found = tuned_by(few, (), database.rows(), H100)
    assert found.table[linear].names == ("float" if is_wrong else "weight_only_linear",)
    assert {one.M for one in found.chosen} == {1, 64}


def test_codes_that_cost_more_than_they_save_are_not_made(tmp_path: Path) -> None:
    class Costly(ByRows):
        """The product takes 90 us instead of 100, and its codes 20."""

        def __call__(
            self, problem: Problem, fit: Mapping[str, Configuration], peers: Sequence[str]
        ) -> ByRows:
            ours = 2e-5 if problem.op == "quantize_rows" else 9e-5
            self.seconds = lambda name: 1e-4 if name in peers else ours
            return self

    found = tuned(tmp_path / "rows.db", Costly(seconds=lambda name: 1.0), 1024)
    assert found.table[LINEAR].names == ("float",)


def test_every_family_has_contenders() -> None:
    assert {*MAKERS} == {*FAMILIES}
