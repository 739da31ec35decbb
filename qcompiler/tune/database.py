"""What was measured, kept: one row per (workload, configuration, machine), in SQLite.

(workload, configuration, isa, processor)  -->  seconds, spread, rounds, compiler, version, reason

Every backend that generates kernels keeps its rows here, and what they are compared with: an engine's or a
vendor's kernel is a configuration like any other.

A transaction holds what was measured together, so a process that dies loses that and no more; writers take
turns (a write-ahead log: https://sqlite.org/wal.html). Rows are text and numbers: reading executes nothing.
"""

import contextlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from qcompiler.errors import TuningError

SCHEMA = 3
PATIENCE = 60.0  # seconds that a writer waits for the others
MINE = 0x71636F6D  # "qcom": the application id of the file
VARIABLE = "QCOMPILER_DATABASE"


@dataclass(frozen=True, kw_only=True)
class Core:
    """What times belong to: an instruction set of ours on a processor as LLVM calls it, or a GPU by name."""

    isa: str
    processor: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement; seconds are a median over rounds, `spread` is their interquartile range over it.

    Infinite seconds: the configuration cannot be compiled, or computes wrong numbers, and need not be tried
    again; reason: why, with figures. Rows that were written before there were reasons have none. compiler:
    what made the kernel, its version, and what else its machine code depends on.
    """

    workload: str
    configuration: str
    isa: str
    processor: str
    seconds: float
    spread: float
    rounds: int
    compiler: str
    qcompiler: str
    reason: str = ""

    @property
    def core(self) -> Core:
        return Core(isa=self.isa, processor=self.processor)

    @property
    def is_refused(self) -> bool:
        return self.seconds == math.inf


COLUMNS = tuple(field.name for field in fields(Row))
KEY = COLUMNS[:4]
SELECT = f"SELECT {', '.join(COLUMNS)} FROM measured"
# Schema 1 kept versions of TVM alone; 2 had no reasons.
WITHOUT_REASON = SELECT.replace(", reason ", ", '' ")
SELECTS = {1: WITHOUT_REASON.replace(" compiler,", " 'tvm ' || tvm,"), 2: WITHOUT_REASON, SCHEMA: SELECT}
UPGRADES = {
    1: (
        "ALTER TABLE measured RENAME COLUMN tvm TO compiler",
        "UPDATE measured SET compiler = 'tvm ' || compiler",
    ),
    2: ("ALTER TABLE measured ADD COLUMN reason NOT NULL DEFAULT ''",),
}
"""What takes a file from a schema to the next; nothing that it holds is lost."""
INSERT = f"INSERT OR REPLACE INTO measured ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
CREATE = f"CREATE TABLE IF NOT EXISTS measured ({', '.join(COLUMNS)}, PRIMARY KEY ({', '.join(KEY)}))"


def default_path() -> Path:
    """The file that QCOMPILER_DATABASE names, else one in the user's folder of caches.

    For commands, backends and ops alike: an op has no argument that could name one.
    """
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "qcompiler" / "schedules.db"


class Database:
    """An open file of rows. A context manager; one per thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, remark: str = "") -> None:
        self.path, self.connection = path, connection
        self.remark = remark  # what happened to an older file, in a sentence

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def rows(self, core: Core | None = None) -> list[Row]:
        """All rows, or those of one machine."""
        with told(self.path):
            found = list(readable(self.connection.execute(select(self.connection))))
        return [row for row in found if core is None or row.core == core]

    def add(self, rows: Iterable[Row]) -> None:
        """Keep rows, all or none; one of the same key is replaced. Raises TuningError on a full disk."""
        with told(self.path):
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                self.connection.executemany(INSERT, map(astuple, rows))
                self.connection.execute("COMMIT")
            except BaseException:  # an interrupt, too: one while others write is raised when it has begun
                if self.connection.in_transaction:  # SQLite may have rolled back by itself
                    self.connection.execute("ROLLBACK")
                raise


def open_database(path: Path) -> Database:
    """Open for writing, made if it is not there. A damaged file is set aside, and what can be read is kept.

    Raises TuningError for a file of another schema or program, which is left alone.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TuningError(f"cannot make the folder of the database '{path}'", why=str(error)) from error
    with told(path), alone(path):  # a file that another process mends is neither damaged nor whole
        try:
            return Database(path, connect(path))
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
        saved = list(salvaged(path))
        aside = set_aside(path)
        database = Database(
            path, connect(path),
            remark=f"the database '{path}' was damaged, so it was set aside as '{aside.name}', and a new one "
            f"was begun with the {len(saved)} rows that could be read",
        )  # fmt: skip
        database.add(saved)
    return database


def read_rows(path: Path, core: Core) -> list[Row]:
    """The rows of a machine, without changing the file; none if there is no file.

    Raises TuningError for a file that cannot be read.
    """
    path = Path(path)
    if not path.exists() or not path.stat().st_size:
        return []
    with told(path), contextlib.closing(connected(path, mode="ro")) as connection:
        check_version(path, connection)
        return Database(path, connection).rows(core)


def ranked(rows: Iterable[Row], versions: Mapping[str, str]) -> list[Row]:
    """Rows that ran, the fastest first; rows of these versions before all others, since only they compare."""
    ran = [row for row in rows if not row.is_refused]
    return sorted(ran, key=lambda row: (not is_of(row, versions), row.seconds, row.configuration))


def best(rows: Iterable[Row], versions: Mapping[str, str]) -> dict[str, Row]:
    """Workload -> the first of its rows when they are ranked."""
    found: dict[str, Row] = {}
    for row in ranked(rows, versions):
        found.setdefault(row.workload, row)
    return found


def is_of(row: Row, versions: Mapping[str, str]) -> bool:
    """Whether a row was measured with these versions."""
    return all(getattr(row, name) == version for name, version in versions.items())


# ---------------------------------------------------------------- rows as text


def to_text(rows: Iterable[Row]) -> str:
    """One JSON object per line, in order: made to be read and compared by people."""
    ordered = sorted(rows, key=lambda row: (row.workload, row.seconds))
    return "".join(json.dumps(plain(row)) + "\n" for row in ordered)


def plain(row: Row) -> dict[str, Any]:
    """Its fields; the reason where it has one."""
    return {name: value for name, value in asdict(row).items() if name != "reason" or value}


def from_text(text: str) -> list[Row]:
    """The rows of `to_text`; raises ValueError or TypeError where a line is none."""
    return [checked(Row(**json.loads(line))) for line in text.splitlines() if line]


# ---------------------------------------------------------------- the file


def connected(path: Path, *, mode: str) -> sqlite3.Connection:
    """With mode "ro" nothing is written, with "rwc" a file is made."""
    place = f"{path.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(place, uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=False)


def connect(path: Path) -> sqlite3.Connection:
    connection = connected(path, mode="rwc")
    try:
        check_version(path, connection)
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("malformed")
        persistently(connection, "PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
        connection.execute("BEGIN IMMEDIATE")
        for older in range(schema(connection) or SCHEMA, SCHEMA):
            for statement in UPGRADES[older]:
                connection.execute(statement)
        connection.execute(CREATE)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute(f"PRAGMA application_id = {MINE}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def persistently(connection: sqlite3.Connection, statement: str) -> None:
    """Until the others let it: the change to a write-ahead log does not wait by itself."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > end:
                raise
            time.sleep(0.02)


def schema(connection: sqlite3.Connection) -> int:
    """0 of a new file."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def select(connection: sqlite3.Connection) -> str:
    return SELECTS.get(schema(connection), SELECT)


def check_version(path: Path, connection: sqlite3.Connection) -> None:
    """Raise TuningError for a database that this version cannot read."""
    connection.execute("BEGIN")  # one view of the file: another process may be making it
    version = schema(connection)
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    connection.execute("COMMIT")
    if (version, owner) == (0, 0) and not tables:
        return  # new
    if owner != MINE:
        raise TuningError(f"'{path}' is a database of another program", fix="name another file")
    if version not in SELECTS:
        raise TuningError(
            f"the database '{path}' was written by another version",
            why=f"its schema is {version}, and this one reads 1 to {SCHEMA}",
            fix="it was left as it is; name another file with --database",
        )


def readable(cursor: Iterable[Sequence[Any]]) -> Iterator[Row]:
    """Rows with the types they should have; others are no measurements."""
    for values in cursor:
        with contextlib.suppress(TypeError, ValueError):
            yield checked(Row(**dict(zip(COLUMNS, values, strict=True))))


def checked(row: Row) -> Row:
    for field in fields(Row):
        if not isinstance(getattr(row, field.name), field.type):  # type: ignore[arg-type]  # a class
            raise TypeError(f"{field.name} is {getattr(row, field.name)!r}")
    if not row.seconds > 0 or row.rounds < 1:
        raise ValueError(f"{row.seconds} seconds in {row.rounds} rounds")
    return row


def salvaged(path: Path) -> Iterator[Row]:
    """What can still be read of a damaged file, up to the damage."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connected(path, mode="ro")) as connection:
        connection.execute("PRAGMA writable_schema = ON")  # a file shorter than it says is read all the same
        yield from readable(connection.execute(select(connection)))


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Whoever else opens the file meanwhile waits; the end of a process ends its turn.

    The lock is SQLite's, on an empty file beside: the same on every system, and between threads as well.
    It stays, since who removed it could remove the one that another has just taken.
    """
    lock = connected(path.with_name(f"{path.name}.lock"), mode="rwc")
    with contextlib.closing(lock):
        lock.execute("BEGIN EXCLUSIVE")
        yield


def set_aside(path: Path) -> Path:
    """Rename a file and its log to the first free name."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    return aside


def is_damage(error: sqlite3.DatabaseError) -> bool:
    return "not a database" in str(error) or "malformed" in str(error)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Errors of SQLite as ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise refused(path, error) from error


FULL = ("SQLITE_FULL", "SQLITE_IOERR")  # a limit of the system shows as an error of input and output


def refused(path: Path, error: sqlite3.DatabaseError) -> TuningError:
    name = str(getattr(error, "sqlite_errorname", ""))
    if name.startswith(FULL):
        return TuningError(
            f"the database '{path}' takes no more rows",
            why=f"the disk is full or does not take them ({error})",
            fix="what was measured before is kept; make room and run it again, and it goes on from there",
        )
    if name == "SQLITE_BUSY":
        return TuningError(f"the database '{path}' was busy for {PATIENCE:.0f} s", fix="run it again")
    if is_damage(error):
        return TuningError(f"the database '{path}' is damaged", why=str(error),
                           fix="`qcompiler tune` sets it aside and keeps what can be read")  # fmt: skip
    return TuningError(f"cannot use the database '{path}'", why=str(error))
