"""What is measured, what is kept, and what is chosen: with a bench that knows how long everything takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.tuning import families
from qcompiler.backends.triton.tuning.borders import borders
from qcompiler.backends.triton.tuning.callers import CALLERS
from qcompiler.backends.triton.tuning.compiling import Verdict
from qcompiler.backends.triton.tuning.device import DEVICES
from qcompiler.backends.triton.tuning.families import FAMILIES, space, written
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.profit import Bucket, weighed
from qcompiler.backends.triton.tuning.schedules import Schedules, schedules_of
from qcompiler.backends.triton.tuning.source import compiler, source_hash, text_of
from qcompiler.backends.triton.tuning.tuner import RESERVE, TRIALS, tune, versions
from qcompiler.tune.database import Row, open_database

H100 = DEVICES[0]
PROBLEM = Problem(op="int8_linear", scheme="int8", M=2048, N=4096, K=4096)
Seconds = Callable[[str], float]


@dataclass
class Planned:
    """A bench on which everything takes as long as it is told to; what it was asked for is kept."""

    seconds: Seconds
    wrong: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    def __call__(self, problem: Problem, fit: Mapping[str, Configuration], peers: Sequence[str]) -> Planned:
        self.asked += [*fit, *peers]
        return self

    def gate(self, name: str) -> str:
        return "its sums are wrong" if name in self.wrong else ""

    def sample(self, name: str) -> float:
        return self.seconds(name)


def fit(problem: Problem, candidates: Iterable[Configuration]) -> list[Verdict]:
    return [Verdict(configuration=one) for one in candidates]


def by_warps(name: str) -> float:
    """Configurations with 4 warps take 100 us, others 90, peers 200."""
    return 2e-4 if name in FAMILIES[PROBLEM.op].peers else 1e-4 if "warps 4" in name else 9e-5


def tuned(path: Path, bench: Planned, problem: Problem = PROBLEM, **options: object) -> list[Row]:
    with open_database(path / "rows.db") as database:
        assert tune([problem], database, H100, fit, bench, rounds=3, **options) == 0  # type: ignore[arg-type]
        return database.rows()


def schedules(rows: Iterable[Row]) -> Schedules:
    return schedules_of(rows, H100.core, H100.capability)


def test_a_few_are_measured_and_the_second_run_measures_nothing(tmp_path: Path) -> None:
    bench = Planned(by_warps)
    rows = tuned(tmp_path, bench)
    assert len(bench.asked) == len(rows) == TRIALS + 1 + len(FAMILIES[PROBLEM.op].peers)
    assert written(space(PROBLEM, 90)[0]) in bench.asked, "the default is always measured"
    again = Planned(by_warps)
    assert tuned(tmp_path, again) == rows and again.asked == []


def test_one_configuration_more_is_all_that_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = space(PROBLEM, 90)[1:4]
    family = FAMILIES[PROBLEM.op]

    def holding(candidates: Sequence[Configuration]) -> None:
        shown = replace(family, space=lambda problem, capability: iter(candidates))
        monkeypatch.setattr(families, "FAMILIES", {PROBLEM.op: shown})

    holding(few)
    tuned(tmp_path, Planned(by_warps))
    one = replace(few[0], stages=2)
    holding([*few, one])
    bench = Planned(by_warps)
    tuned(tmp_path, bench)
    assert bench.asked == [written(one), "float"]


def test_what_cannot_run_is_kept_as_that_and_never_tried_again(tmp_path: Path) -> None:
    default = written(space(PROBLEM, 90)[0])

    def spilled(problem: Problem, candidates: Iterable[Configuration]) -> list[Verdict]:
        return [
            Verdict(configuration=one, fault="" if written(one) == default else "spills")
            for one in candidates
        ]

    bench = Planned(by_warps, wrong=frozenset({"int_mm"}))
    with open_database(tmp_path / "rows.db") as database:
        tune([PROBLEM], database, H100, spilled, bench, rounds=3)
        rows = database.rows()
    assert sorted(bench.asked) == sorted([default, "float", "int_mm"])
    ran = {row.configuration for row in rows if row.seconds < math.inf}
    assert ran == {default, "float"} and len(rows) == TRIALS + RESERVE + 3, (
        "for each refused one more is tried"
    )
    assert not any(row.reason for row in rows if row.configuration in ran)
    reasons = {row.configuration: row.reason for row in rows if row.is_refused}
    assert reasons.pop("int_mm") == "it ran wrong: its sums are wrong" and {*reasons.values()} == {"spills"}
    again = Planned(by_warps)
    tuned(tmp_path, again)
    assert again.asked == []


def test_who_wins_by_chance_is_found_out_in_a_second_run(tmp_path: Path) -> None:
    calls: dict[str, int] = {}

    def lucky(name: str) -> float:
        """Everything takes 100 us, but what is timed second takes 50 in its first three calls."""
        calls[name] = calls.get(name, 0) + 1
        return 5e-5 if [*calls][1:2] == [name] and calls[name] <= 3 else 1e-4

    rows = tuned(tmp_path, Planned(lucky))
    assert {row.seconds for row in rows} == {1e-4}


def test_the_time_ends_between_problems_and_says_what_is_left(tmp_path: Path) -> None:
    problems = [replace(PROBLEM, M=rows) for rows in (256, 512, 1024)]
    times = iter(range(100))
    with open_database(tmp_path / "rows.db") as database:
        left = tune(
            problems, database, H100, fit, Planned(by_warps), rounds=3, until=1.5,
            clock=lambda: float(next(times)),
        )  # fmt: skip
        assert left > 0
        assert len({row.workload for row in database.rows()}) == 3 - left


def test_a_run_that_dies_keeps_what_was_measured_before(tmp_path: Path) -> None:
    problems = [replace(PROBLEM, M=rows) for rows in (256, 512, 1024)]

    def dying(problem: Problem, fit: Mapping[str, Configuration], peers: Sequence[str]) -> Planned:
        if problem.M == 1024:
            raise KeyboardInterrupt
        return Planned(by_warps)

    with open_database(tmp_path / "rows.db") as database, pytest.raises(KeyboardInterrupt):
        tune(problems, database, H100, fit, dying, rounds=3)
    with open_database(tmp_path / "rows.db") as database:
        assert {row.workload for row in database.rows()} == {problem.text for problem in problems[:2]}


# ---------------------------------------------------------------- choices


def test_the_fastest_is_chosen_and_the_default_where_nothing_is_faster_by_three_percent(
    tmp_path: Path,
) -> None:
    default = written(space(PROBLEM, 90)[0])
    fastest = Planned(lambda name: 1e-4 if name == default else 2e-4)
    choice = schedules(tuned(tmp_path, fastest)).choice(PROBLEM)
    assert choice is not None and choice.contender == default and choice.ratio == 2.0

    rows = tuned(tmp_path, fastest)
    other = next(row for row in rows if "warps" in row.configuration and row.configuration != default)
    near, far = (
        [*(row for row in rows if row != other), replace(other, seconds=seconds)]
        for seconds in (9.8e-5, 9.5e-5)
    )
    assert schedules(near).choice(PROBLEM).contender == default  # type: ignore[union-attr]
    assert schedules(far).choice(PROBLEM).contender == other.configuration  # type: ignore[union-attr]


def test_a_peer_is_chosen_where_it_is_faster_and_our_kernels_keep_their_own_best(tmp_path: Path) -> None:
    found = schedules(tuned(tmp_path, Planned(lambda name: 1e-5 if name == "int_mm" else 1e-4)))
    choice = found.choice(PROBLEM)
    assert choice is not None and (choice.contender, choice.configuration) == ("int_mm", None)
    assert found.configuration(PROBLEM) == space(PROBLEM, 90)[0]


def test_rows_of_another_kernel_are_priors(tmp_path: Path) -> None:
    """They choose as long as nothing else is known, are tried first, and give way to what is measured."""
    rows = tuned(tmp_path, Planned(by_warps))
    slowest = space(PROBLEM, 90)[-1]
    old = replace(rows[0], configuration=written(slowest), compiler="triton 2.0, source 0", seconds=1e-6)
    choice = schedules([old]).choice(PROBLEM)
    assert choice is not None and choice.is_prior and choice.configuration == slowest
    newer = schedules([old, *rows]).choice(PROBLEM)
    assert newer is not None and not newer.is_prior and newer.contender != old.configuration
    (tmp_path / "other").mkdir()
    with open_database(tmp_path / "other" / "rows.db") as database:
        database.add([old])
        bench = Planned(by_warps)
        tune([PROBLEM], database, H100, fit, bench, rounds=3)
    assert old.configuration in bench.asked


def test_rows_that_came_with_the_package_are_where_one_begins(tmp_path: Path) -> None:
    """Even those of this version: another device of the same name may be another card."""
    slowest = written(space(PROBLEM, 90)[-1])
    row = replace(tuned(tmp_path, Planned(by_warps))[0], configuration=slowest, seconds=1e-6)
    with open_database(tmp_path / "empty.db") as database:
        bench = Planned(by_warps)
        tune([PROBLEM], database, H100, fit, bench, rounds=3, shipped=[row])
        assert slowest in bench.asked
        assert next(one.seconds for one in database.rows() if one.configuration == slowest) > 1e-6


def test_a_peer_wins_against_nobody(tmp_path: Path) -> None:
    rows = [
        row for row in tuned(tmp_path, Planned(by_warps)) if row.configuration in FAMILIES[PROBLEM.op].peers
    ]
    assert len(rows) == 2 and schedules(rows).choice(PROBLEM) is None


def test_what_was_measured_here_goes_before_what_was_shipped(tmp_path: Path) -> None:
    default = written(space(PROBLEM, 90)[0])
    mine = tuned(tmp_path, Planned(lambda name: 1e-4 if name == default else 9e-5))
    theirs = [replace(row, seconds=1e-6) for row in mine if row.configuration == default]
    choice = schedules([*mine, *theirs]).choice(PROBLEM)
    assert theirs and choice is not None and choice.contender != default


def test_a_prior_is_tried_once(tmp_path: Path) -> None:
    """What is left of an older kernel after the first run is not looked at by the second."""
    path = tmp_path / "rows.db"
    with open_database(path) as database:
        tune([PROBLEM], database, H100, fit, Planned(by_warps), rounds=3)
        old = [replace(row, compiler="triton 2.0, source 0") for row in database.rows()]
        others = [written(one) for one in space(PROBLEM, 90)[-4:]]
        database.add([*old, *(replace(old[0], configuration=name) for name in others)])
        tune([PROBLEM], database, H100, fit, Planned(by_warps), rounds=3)
        again = Planned(by_warps)
        tune([PROBLEM], database, H100, fit, again, rounds=3)
    assert again.asked == []


def test_rows_of_another_device_are_not_of_this_one(tmp_path: Path) -> None:
    rows = [
        replace(row, processor="NVIDIA A100, 108 processors") for row in tuned(tmp_path, Planned(by_warps))
    ]
    assert schedules(rows).choice(PROBLEM) is None


# ---------------------------------------------------------------- borders, profit, sources


def test_borders_lie_where_the_fastest_changes() -> None:
    def fastest(rows: int) -> str:
        return "gemv" if rows < 5 else "few" if rows < 150 else "many" if rows < 1000 else "float"

    starts, names = borders(fastest, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048], grain=1)
    assert (starts, names) == ([5, 150, 1000], ["gemv", "few", "many", "float"])
    starts, names = borders(fastest, [1, 64, 128, 256, 512, 1024], grain=16)
    assert names == ["gemv", "few", "many", "float"]
    assert all(abs(start - right) <= 16 for start, right in zip(starts, (5, 150, 1000), strict=True))


def test_one_contender_has_no_borders() -> None:
    assert borders(lambda rows: "float", [1, 8192]) == ([], ["float"])


def test_few_bits_are_accepted_by_what_they_save_with_their_codes() -> None:
    bucket = Bucket(M=32, weight=1.0, few_bits=1.0, in_float=1.10)
    assert weighed("o_proj 4096x1024", [bucket], is_measured=True).is_accepted
    shared = replace(bucket, quantize=0.12)
    refused = weighed("o_proj 4096x1024", [shared], is_measured=True)
    assert not refused.is_accepted
    assert str(refused) == "refused o_proj 4096x1024 M=32: 0.98x measured, 1.05x needed"
    assert weighed("qkv", [replace(shared, consumers=3)], is_measured=True).is_accepted
    assert not weighed("qkv", [bucket], is_measured=False).is_accepted, "on paper a third is needed"


def test_buckets_count_as_often_as_they_come() -> None:
    slow, fast = (
        Bucket(M=1, weight=1.0, few_bits=2.0, in_float=1.0),
        Bucket(M=64, weight=1.0, few_bits=1.0, in_float=2.0),
    )
    assert not weighed("o_proj", [slow, fast], is_measured=True).is_accepted
    assert weighed("o_proj", [slow, replace(fast, weight=3.0)], is_measured=True).is_accepted


def test_rows_belong_to_what_a_kernel_says_and_not_to_how_it_is_laid_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcompiler.backends.triton.tuning import source

    def hashed(**texts: str) -> str:
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
        return source_hash("one")

    assert compiler("int8_matmul") != compiler("quantize_rows")
    monkeypatch.setattr(source, "FOLDER", tmp_path)
    importing = "from qcompiler.backends.triton.kernels.two import f\nx = f(1)\n"
    first = hashed(one=importing, two="def f(x):\n    return x\n")
    assert hashed(one="# why\n\n" + importing) == first
    assert hashed(two="def f(x):\n    return x + 1\n") != first


def test_rows_of_peers_belong_to_how_they_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another layout or argument makes another time; what a function says of itself makes none."""
    from qcompiler.backends.triton.tuning import source

    assert {op: [*peers] for op, peers in CALLERS.items()} == {
        op: [*family.peers] for op, family in FAMILIES.items()
    }
    assert all(text_of(name) for peers in CALLERS.values() for names in peers.values() for name in names)
    mine, torchs, floats = (versions(PROBLEM, name)["compiler"] for name in ("BM 128", "int_mm", "float"))
    assert mine.startswith("triton ") and torchs.startswith("torch ") and torchs != floats

    file = tmp_path / "vendors.py"
    file.write_text('def call(a, b):\n    """Called."""\n    # so\n    return f(a, b.t())\n')
    monkeypatch.setattr(source, "BACKEND", tmp_path)
    assert text_of("vendors.call") == "def call(a, b):\n    return f(a, b.t())"


def test_what_was_called_otherwise_is_measured_again_beside_the_best_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcompiler.backends.triton.tuning import tuner

    tuned(tmp_path, Planned(by_warps))
    others = {**CALLERS[PROBLEM.op], "int_mm": ("ops.linear.finished",)}
    monkeypatch.setattr(tuner, "CALLERS", {PROBLEM.op: others})
    bench = Planned(by_warps)
    tuned(tmp_path, bench)
    (best,) = {*bench.asked} - {"float", "int_mm"}
    assert len(bench.asked) == 3 and "warps 8" in best, "a ratio is of one session"
