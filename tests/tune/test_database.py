"""The database of measured schedules: what happens to rows when files, disks and processes fail."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest

from qcompiler.errors import TuningError
from qcompiler.tune import database as module
from qcompiler.tune.database import Core, Database, Row, best, from_text, open_database, read_rows, to_text

CORE = Core(isa="avx512_vnni", processor="znver4")
ROW = Row(
    workload="convolution 1", configuration="{}", isa=CORE.isa, processor=CORE.processor, seconds=1e-3,
    spread=0.1, rounds=5, compiler="tvm 1", qcompiler="1",
)  # fmt: skip


def rows(count: int, start: int = 0) -> list[Row]:
    return [replace(ROW, workload=f"convolution {i:05d}") for i in range(start, start + count)]


def started(program: str, path: Path) -> subprocess.Popen[str]:
    """A process that runs a program with the database's path as its argument."""
    code = "import sys\nfrom tests.tune.test_database import *\nfrom pathlib import Path\n" + program
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)], text=True, cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_rows_come_back_and_replace_those_of_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.db"
    assert read_rows(path, CORE) == []
    with open_database(path) as database:
        database.add(rows(3))
        database.add([replace(rows(1)[0], seconds=5e-4), replace(ROW, processor="znver5")])
    found = read_rows(path, CORE)
    assert sorted(row.seconds for row in found) == [5e-4, 1e-3, 1e-3]
    assert from_text(to_text(found)) == sorted(found, key=lambda row: row.workload)


def test_ctrl_c_keeps_all_of_what_is_added_or_none(tmp_path: Path) -> None:
    """And who asks afterwards what was measured is told what is on the disk."""

    def interrupted() -> Iterator[Row]:
        yield ROW
        raise KeyboardInterrupt

    with open_database(tmp_path / "rows.db") as database:
        with pytest.raises(KeyboardInterrupt):
            database.add(interrupted())
        assert database.rows() == []
        database.add([ROW])
        assert database.rows() == read_rows(tmp_path / "rows.db", CORE) == [ROW]


class InterruptedWaiting:
    """A connection that waits for another writer at Ctrl-C, of which Python tells when SQLite returns."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def execute(self, statement: str) -> sqlite3.Cursor:
        done = self.connection.execute(statement)
        if statement.startswith("BEGIN"):
            raise KeyboardInterrupt
        return done


def test_ctrl_c_while_another_writes_leaves_no_transaction_open(tmp_path: Path) -> None:
    with open_database(tmp_path / "rows.db") as database:
        waiting = InterruptedWaiting(database.connection)
        with pytest.raises(KeyboardInterrupt):
            Database(database.path, waiting).add([ROW])  # type: ignore[arg-type]  # it stands for one
        assert not database.connection.in_transaction
        database.add([ROW])
        assert database.rows() == [ROW]


def test_the_best_row_is_the_fastest_of_these_versions() -> None:
    old = replace(ROW, configuration="old", seconds=1e-4, compiler="tvm 0")
    fast, slow = replace(ROW, configuration="fast"), replace(ROW, configuration="slow", seconds=2e-3)
    assert best([old, slow, fast], {"compiler": "tvm 1"})["convolution 1"] == fast
    assert best([old], {"compiler": "tvm 1"})["convolution 1"] == old


def older(path: Path, schema: int, held: list[Row]) -> None:
    """A file as version `schema` made it."""
    maker = {1: "tvm", 2: "compiler"}[schema]
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE measured (workload, configuration, isa, processor, seconds, spread, rounds, "
        f"{maker}, qcompiler, PRIMARY KEY (workload, configuration, isa, processor))"
    )
    values = [astuple(row)[:-1] for row in held]
    connection.executemany(f"INSERT INTO measured VALUES ({', '.join('?' * 9)})", values)
    connection.execute(f"PRAGMA user_version = {schema}")
    connection.execute(f"PRAGMA application_id = {module.MINE}")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(("schema", "before"), [(1, ""), (2, "tvm ")])
@pytest.mark.parametrize("is_written", [False, True])
def test_rows_of_older_schemas_are_read_and_brought_up_to_this_one(
    tmp_path: Path, schema: int, before: str, is_written: bool
) -> None:
    """Those that ran and those that could not, whose reasons nobody wrote."""
    path = tmp_path / "rows.db"
    held = [*rows(2), replace(ROW, workload="convolution 00002", seconds=math.inf)]
    older(path, schema, [replace(row, compiler=f"{before}0.27") for row in held])
    wanted = [replace(row, compiler="tvm 0.27") for row in held]
    if is_written:
        new = replace(ROW, workload="convolution 00003", seconds=math.inf, reason="2,656 bytes of stack")
        with open_database(path) as database:
            database.add([new])
        wanted += [new]
    assert sorted(read_rows(path, CORE), key=lambda row: row.workload) == wanted


def test_why_a_row_was_refused_is_kept_in_the_file_and_in_its_text(tmp_path: Path) -> None:
    refused = replace(ROW, configuration="BM 256", seconds=math.inf, reason="255 registers, 168 are allowed")
    with open_database(tmp_path / "rows.db") as database:
        database.add([ROW, refused])
    found = read_rows(tmp_path / "rows.db", CORE)
    assert {row.reason for row in found if row.is_refused} == {refused.reason}
    assert from_text(to_text(found)) == [ROW, refused] and to_text([ROW]).count("reason") == 0


def test_a_killed_writer_loses_the_transaction_it_was_in(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    writer = started(
        "database = open_database(Path(sys.argv[1]))\n"
        "database.add(rows(10))\n"
        "database.connection.execute('BEGIN IMMEDIATE')\n"
        "database.connection.execute('UPDATE measured SET seconds = 9.0')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n",
        path,
    )
    assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    with open_database(path) as database:
        assert sorted(database.rows(), key=lambda row: row.workload) == rows(10)
        assert database.remark == ""
        database.add(rows(1, start=10))
        assert len(database.rows()) == 11


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    program = (
        "with open_database(Path(sys.argv[1])) as database:\n"
        "    for i in range(40):\n        database.add(rows(2, start={start} + 2 * i))\n"
    )
    writers = [started(program.replace("{start}", str(start)), path) for start in (0, 1000)]
    for writer in writers:
        _, complaint = writer.communicate()
        assert writer.returncode == 0, complaint
    assert len(read_rows(path, CORE)) == 160


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of files are those of POSIX")
def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    """The system refuses to let a file of the process grow beyond 200 kB: the same error as no room."""
    path = tmp_path / "rows.db"
    writer = started(
        "import resource\n"
        "database = open_database(Path(sys.argv[1]))\n"
        "database.add(rows(10))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n    database.add(rows(20_000, start=10))\n"
        "except TuningError as error:\n    print(error, len(database.rows()))\n",
        path,
    )  # fmt: skip
    told, complaint = writer.communicate()
    assert "takes no more rows, because the disk is full" in told and told.endswith(" 10\n"), complaint
    with open_database(path) as database:
        assert sorted(database.rows(), key=lambda row: row.workload) == rows(10)


def damaged(path: Path, size: float) -> None:
    """A database of many pages, cut to a share of its size."""
    with open_database(path) as database:
        database.add(rows(2000))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * size)])


@pytest.mark.parametrize("size", [0.5, 0.9])
def test_a_truncated_file_is_set_aside_and_its_readable_rows_are_kept(tmp_path: Path, size: float) -> None:
    path = tmp_path / "rows.db"
    damaged(path, size)
    before = path.read_bytes()
    with pytest.raises(TuningError, match="is damaged"):
        read_rows(path, CORE)
    with open_database(path) as database:
        kept = len(database.rows())
        assert (
            f"set aside as 'rows.db.damaged-1', and a new one was begun with the {kept} rows"
            in database.remark
        )
        assert set(database.rows()) <= set(rows(2000)) and 0 < kept < 2000
    assert (tmp_path / "rows.db.damaged-1").read_bytes() == before
    with open_database(path) as database:
        assert database.remark == "" and len(database.rows()) == kept


def test_what_is_no_database_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    path.write_text("no database at all, but somebody's text" * 100)
    (tmp_path / "rows.db.damaged-1").write_text("an older one")
    with open_database(path) as database:
        assert "set aside as 'rows.db.damaged-2'" in database.remark and database.rows() == []
    assert (tmp_path / "rows.db.damaged-2").read_text().startswith("no database")


def test_two_that_find_the_same_damage_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one reads what is left, another opens the file, and keeps a row if it is let in."""
    path, whole = tmp_path / "rows.db", module.salvaged
    damaged(path, 0.5)

    def second() -> None:
        with open_database(path) as database:
            database.add([ROW])

    other = threading.Thread(target=second)

    def interrupted(path: Path) -> Iterator[Row]:
        monkeypatch.setattr(module, "salvaged", whole)
        left = list(whole(path))
        other.start()
        other.join(1.0)
        return iter(left)

    monkeypatch.setattr(module, "salvaged", interrupted)
    with open_database(path):
        other.join()
    assert ROW in read_rows(path, CORE)
    assert [file.name for file in tmp_path.glob("*.damaged-?")] == ["rows.db.damaged-1"]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "PRAGMA user_version = 7",
            "written by another version, because its schema is 7, and this one reads 1 to 3",
        ),
        ("PRAGMA application_id = 5", "is a database of another program"),
    ],
)
def test_another_version_is_refused_and_left_alone(tmp_path: Path, statement: str, words: str) -> None:
    path = tmp_path / "rows.db"
    with open_database(path) as database:
        database.add(rows(3))
        database.connection.execute(statement)
    before = path.read_bytes()
    for act in (open_database, lambda path: read_rows(path, CORE)):
        with pytest.raises(TuningError, match=words):
            act(path)
    assert path.read_bytes() == before and not list(tmp_path.glob("*damaged*"))


def test_values_that_are_no_measurement_are_not_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    with open_database(path) as database:
        database.add(rows(2))
        database.connection.execute(
            "UPDATE measured SET seconds = 'soon' WHERE workload = 'convolution 00000'"
        )
        assert [row.workload for row in database.rows()] == ["convolution 00001"]
    with pytest.raises(TypeError, match="unexpected"):
        from_text('{"workload": 1, "surprise": 2}')


def test_a_folder_in_the_way_is_told(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="cannot use the database"):
        open_database(tmp_path)
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(tmp_path)
