"""Which configuration an op runs with: from a planted database, for a device that is not here."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path

import pytest
import torch

from qcompiler.backends.triton.configurations import Configuration, chosen
from qcompiler.backends.triton.ops import schedule
from qcompiler.backends.triton.ops.schedule import WRONG, NotMeasured, of_rows, reading, scheduled
from qcompiler.backends.triton.tuning import device as devices
from qcompiler.backends.triton.tuning import shipped
from qcompiler.backends.triton.tuning.device import DEVICES, Device
from qcompiler.backends.triton.tuning.families import check, space, written
from qcompiler.backends.triton.tuning.problem import Problem, parsed
from qcompiler.backends.triton.tuning.shipped import ship
from qcompiler.backends.triton.tuning.tuner import versions
from qcompiler.errors import TargetError
from qcompiler.tune import database
from qcompiler.tune.database import Row, open_database

H100, H200 = DEVICES[0], DEVICES[1]
FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
PROBLEM = Problem(op="int8_linear", scheme="int8", M=2048, N=4096, K=4096)
DEFAULT = chosen("int8_matmul", 90)
OTHER = space(PROBLEM, 90)[5]


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(database, "default_path", lambda: tmp_path / "rows.db")
    monkeypatch.setattr(devices, "device_of", lambda device: H100 if device == FIRST else H200)
    schedule.of_device.cache_clear()
    yield
    schedule.of_device.cache_clear()


def plant(
    path: Path, problem: Problem, seconds: dict[str, float], device: Device = H100, *,
    reason: str = "{} spills",
) -> None:  # fmt: skip
    """Into a file, or that of a folder. reason: of what is refused."""

    def row(name: str) -> Row:
        return Row(
            workload=problem.text, configuration=name, isa=device.core.isa, processor=device.core.processor,
            seconds=seconds[name], spread=0.0, rounds=3, **versions(problem, name),
            reason=reason.format(name) if seconds[name] == inf else "",
        )  # fmt: skip

    with open_database(path / "rows.db" if path.is_dir() else path) as opened:
        opened.add(map(row, seconds))


def asked(problem: Problem = PROBLEM, device: torch.device = FIRST) -> Configuration:
    """What runs where a row is expected: no warning is."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return scheduled(problem, device, DEFAULT)


def test_the_fastest_of_the_database_runs_and_it_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers are nothing that an op could run; a bucket's row is that of all its rows."""
    plant(tmp_path, PROBLEM, {written(DEFAULT): 2e-4, written(OTHER): 1e-4, "int_mm": 5e-5})
    assert asked() == OTHER
    monkeypatch.setattr(database, "default_path", lambda: pytest.fail("it is read again"))
    assert asked() == asked(replace(PROBLEM, M=1500)) == OTHER
    with pytest.warns(UserWarning, match="N 64, K 64, bf16: nothing was measured"):
        assert scheduled(replace(PROBLEM, N=64, K=64), FIRST, DEFAULT) == DEFAULT


def test_a_row_with_parts_or_walking_runs_as_it_says(tmp_path: Path) -> None:
    few, many = replace(PROBLEM, M=16), replace(PROBLEM, M=8192)
    for problem, name in ((few, "SPLIT"), (many, "PERSISTENT")):
        default = space(problem, 90)[0]
        other = next(one for one in space(problem, 90) if name in one.constants)
        plant(tmp_path, problem, {written(default): 1e-4, written(other): 9e-5})
        schedule.of_device.cache_clear()
        assert asked(problem) == other


def test_each_device_has_rows_of_its_own(tmp_path: Path) -> None:
    plant(tmp_path, PROBLEM, {written(OTHER): 1e-4}, H200)
    assert asked(device=SECOND) == OTHER
    with pytest.warns(UserWarning, match="nothing was measured on this device"):
        assert scheduled(PROBLEM, FIRST, DEFAULT) == DEFAULT


def test_without_a_database_the_tables_say_and_that_is_said_once() -> None:
    with pytest.warns(UserWarning, match=r"nothing was measured on this device.*qcompiler tune") as said:
        assert scheduled(PROBLEM, FIRST, DEFAULT) == DEFAULT
    assert [warning.filename for warning in said] == [__file__], "it points to who called"
    assert asked() == asked(replace(PROBLEM, M=1999)) == asked(replace(PROBLEM, M=1)) == DEFAULT, "of any M"
    with pytest.warns(UserWarning, match="int8_linear, int8, M 2048, N 64"):
        scheduled(replace(PROBLEM, N=64), FIRST, DEFAULT)


@pytest.mark.parametrize(
    ("op", "scheme", "N", "heavy"),
    [
        ("norm_quantize", "int8 layer residual floats", 0, False),
        ("hadamard_quantize", "e4m3 64", 0, False),
        ("quantize_both", "int8 drawn ragged", 0, False),
        ("quantize_by_amax", "e4m3", 0, False),
        ("quantize_by_scale", "int8", 0, False),
        ("quantize_blocks", "e4m3", 0, False),
        ("fp8_block_linear", "e4m3", 512, True),
        ("weight_only_linear", "w4h_g64 zeros gated", 512, True),
        ("fp8_linear", "e4m3 promote128", 512, True),
    ],
)
def test_the_command_of_a_warning_measures_just_that(
    tmp_path: Path, op: str, scheme: str, N: int, heavy: bool
) -> None:
    """What a shell makes of it is a problem that is known, and with a row of it there is no warning."""
    problem = Problem(op=op, scheme=scheme, M=1000, N=N, K=4096, heavy=heavy)
    file = tmp_path / "my rows.db"
    default = space(problem, 90)[0]
    with reading(file), pytest.warns(NotMeasured) as said:
        scheduled(problem, FIRST, default)
    words = shlex.split(str(said[0].message).split("`")[1])
    assert words[:6] == ["qcompiler", "tune", "--target", "cuda", "--database", str(file)]
    named = parsed(words[words.index("--problem") + 1])
    assert named == problem.bucketed and named is not None
    check(named)
    plant(file, named, {written(space(named, 90)[1]): 1e-5})
    schedule.of_device.cache_clear()
    with reading(file):
        assert asked(problem) == space(named, 90)[1]


def test_a_database_that_is_named_is_read_by_ops_called_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a backend, or by the environment for ops on their own; that of the cache folder is another."""
    plant(tmp_path / "mine.db", PROBLEM, {written(OTHER): 1e-4})
    with pytest.warns(NotMeasured):
        assert scheduled(PROBLEM, FIRST, DEFAULT) == DEFAULT
    with reading(tmp_path / "mine.db"):
        assert asked() == OTHER
    assert asked() == DEFAULT
    monkeypatch.undo()  # of the default's place
    monkeypatch.setattr(devices, "device_of", lambda device: H100)
    monkeypatch.setenv(database.VARIABLE, str(tmp_path / "mine.db"))
    schedule.of_device.cache_clear()
    assert asked() == OTHER


def test_a_damaged_database_is_left_out_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "rows.db").write_bytes(b"SQLite format 3\x00" + b"\x7f" * 5000)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert scheduled(PROBLEM, FIRST, DEFAULT) == DEFAULT
    of_database, of_problem = (str(warning.message) for warning in said)
    assert (
        of_database.endswith("meanwhile kernels run as is shipped and as the tables say")
        and "rows.db" in of_database
    )
    assert "nothing was measured" in of_problem
    assert asked() == DEFAULT


def test_what_no_space_has_is_never_run(tmp_path: Path) -> None:
    """A row chooses among configurations; it cannot make one."""
    plant(tmp_path, PROBLEM, {"BM 512, BN 512, BK 512, GROUP 8, DESCRIPTORS True, warps 8, stages 9": 1e-9})
    with pytest.warns(UserWarning, match="nothing was measured"):
        assert scheduled(PROBLEM, FIRST, DEFAULT) == DEFAULT


def test_what_was_not_tried_whole_is_to_be_measured(tmp_path: Path) -> None:
    """A run was stopped before floats were timed, which is last."""
    plant(tmp_path, PROBLEM, {written(DEFAULT): inf, written(OTHER): inf})
    with pytest.warns(NotMeasured, match="nothing was measured .* `qcompiler tune"):
        assert scheduled(PROBLEM, FIRST, DEFAULT) == DEFAULT


def test_why_all_were_refused_is_told_once_for_each_bucket(tmp_path: Path) -> None:
    """The reason is that of the tables' row, which runs."""
    small = replace(PROBLEM, M=16)
    first = space(small, 90)[0]
    plant(tmp_path, PROBLEM, {written(DEFAULT): inf, written(OTHER): inf, "float": 1e-4})
    plant(tmp_path, small, {written(first): inf, "float": 1e-4})
    with pytest.warns(NotMeasured) as said:
        for M in (2048, 1999, 16):
            at = first if M == 16 else DEFAULT
            assert scheduled(replace(PROBLEM, M=M), FIRST, at) == at
    large, little = (str(warning.message) for warning in said)
    assert "all 2 candidates that were tried" in large and "all 1 candidates" in little
    assert f"because '{written(DEFAULT)} spills', so it runs as the tables say" in large
    assert "--trials 64` tries others" in large


def test_what_computes_wrong_numbers_on_this_device_does_not_run(tmp_path: Path) -> None:
    plant(tmp_path, PROBLEM, {written(DEFAULT): inf, "float": 1e-4}, reason=f"{WRONG}its error is 1")
    with pytest.raises(TargetError, match=r"bf16 cannot run on this device, because all 1 .*its error is 1'"):
        scheduled(PROBLEM, FIRST, DEFAULT)


@pytest.mark.parametrize("op", ["quantize_rows", "norm_quantize"])
def test_rows_of_floats_are_scheduled_as_well(tmp_path: Path, op: str) -> None:
    problem = of_rows(op, "int8" if op == "quantize_rows" else "int8 rms", torch.empty(100, 768).bfloat16())
    other = space(problem.bucketed, 90)[1]
    plant(tmp_path, problem.bucketed, {written(other): 1e-5})
    assert asked(problem) == other


def test_what_no_family_knows_by_its_type_runs_as_the_tables_say() -> None:
    """float64 has no place in the text of rows that anybody measures, but it has one."""
    x = torch.empty(4, 32, dtype=torch.float64)
    with pytest.warns(UserWarning, match="quantize_rows, int8, M 4, K 32, float64: nothing was measured"):
        scheduled(of_rows("quantize_rows", "int8", x), FIRST, chosen("quantize_rows", 90))


def test_rows_that_came_with_the_package_do_where_nothing_was_measured_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, PROBLEM, {written(OTHER): 1e-4})
    with open_database(tmp_path / "rows.db") as opened:
        ship(opened.rows(), tmp_path / "shipped")
    monkeypatch.setattr(shipped, "shipped", partial(shipped.shipped, folder=tmp_path / "shipped"))
    monkeypatch.setattr(database, "default_path", lambda: tmp_path / "none.db")
    assert asked() == OTHER
