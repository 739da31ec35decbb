"""`qcompiler tune` on a small model: what it keeps, what it tells, and how it ends."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from qcompiler.passes.decide import decide
from qcompiler.tune.database import Database, Row
from tests.backends.tvm.test_conv import pytestmark

__all__ = ["pytestmark"]
Run = Callable[[str], Result]


def test_rows_are_kept_shown_and_used(run: Run, tmp_path: Path) -> None:
    result = run("tune zoo:residual --database rows.db --trials 2 --json told.json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(Path("told.json").read_text())
    assert [layer["workload"].split(",")[0] for layer in told["layers"]] == ["convolution"] * 3
    assert all(layer["us"] > 0 and 0 < layer["of_peak"] < 1.5 for layer in told["layers"])
    assert all(layer["predicted_ratio"] >= 1 for layer in told["layers"]) and told["left"] == 0
    assert "with the schedules predicted on paper" in result.stdout
    rows = sqlite3.connect("rows.db").execute("SELECT count(*) FROM measured").fetchone()
    assert rows == (6,)
    again = run("tune zoo:residual --database rows.db --trials 2 --json -")
    assert json.loads(again.stdout)["layers"] == told["layers"]  # nothing was measured again
    compiled = run("compile zoo:residual --backend tvm --database rows.db --quiet --threads 1")
    assert compiled.exit_code == 0, compiled.stderr


def test_the_budget_of_time_is_told_and_the_environment_names_the_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QCOMPILER_DATABASE", str(tmp_path / "mine.db"))
    result = run("tune zoo:residual --time-budget 0")
    assert result.exit_code == 0
    assert "3 layers were not reached in time" in result.stderr
    assert (tmp_path / "mine.db").is_file() and "mine.db" in result.stdout


def test_the_budget_begins_with_the_first_layer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a model takes before, every run gets on."""

    def slow(*given: Any, **options: Any) -> Any:
        time.sleep(1.0)
        return decide(*given, **options)

    monkeypatch.setattr("qcompiler.passes.decide.decide", slow)
    result = run("tune zoo:residual --database rows.db --trials 2 --time-budget 1 --json -")
    told = json.loads(result.stdout)
    assert told["left"] < 3 and told["layers"]


def test_damage_is_told_and_the_run_goes_on(run: Run) -> None:
    Path("rows.db").write_bytes(b"not a database" * 100)
    result = run("tune zoo:residual --database rows.db --trials 2")
    assert result.exit_code == 0
    assert "was damaged, so it was set aside as 'rows.db.damaged-1'" in result.stderr


def test_another_version_and_another_backend_are_refused(run: Run) -> None:
    connection = sqlite3.connect("rows.db")
    connection.execute("PRAGMA user_version = 9")
    connection.execute(f"PRAGMA application_id = {0x71636F6D}")
    connection.execute("CREATE TABLE measured (other)")
    connection.close()
    result = run("tune zoo:residual --database rows.db")
    assert result.exit_code == 1 and "was written by another version" in result.stderr
    with pytest.warns(UserWarning, match="another version"):
        assert run("compile zoo:residual --backend tvm --database rows.db --quiet").exit_code == 0
    result = run("compile zoo:residual --database rows.db")
    assert result.exit_code == 1 and "'ort' reads no database" in result.stderr
    assert "leave it out, or use tvm or triton" in result.stderr


def test_no_tracker_and_no_address_are_told(run: Run) -> None:
    result = run("tune zoo:residual --database rows.db --tracker nowhere")
    assert result.exit_code == 1 and "'nowhere' is no address of a tracker" in result.stderr


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), pytest.param(signal.SIGINT, 130, marks=pytest.mark.thorough)],
)
def test_a_stopped_run_goes_on_with_the_layer_that_it_was_at(
    run: Run, zoo: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    """A real process, stopped as soon as its first layer is kept; it waits there, so that it is not done."""
    path = tmp_path / "rows.db"
    waits = (
        # A shell that runs tests in the background ignores interrupts, and so would this process.
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from qcompiler.tune.database import Database; add = Database.add; "
        "Database.add = lambda self, rows: (add(self, rows), time.sleep(3)); "
    )
    process = started(f"tune {zoo / 'zoo.py'}:residual --database {path} --trials 2", before=waits)
    while process.poll() is None and not kept(path):
        time.sleep(0.01)
    process.send_signal(sent)
    process.communicate()
    assert process.returncode == code
    before = kept(path)
    assert before
    result = run("tune zoo:residual --database rows.db --trials 2")
    assert result.exit_code == 0, result.stderr
    after = kept(path)
    assert {name: after[name] for name in before} == before and len(after) == 3


def test_ctrl_c_tells_what_was_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first layer is kept."""
    add = Database.add

    def stopped(self: Database, rows: Iterable[Row]) -> None:
        add(self, rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(Database, "add", stopped)
    result = run("tune zoo:residual --database rows.db --trials 2 --json told.json")
    assert result.exit_code == 130
    told = json.loads(Path("told.json").read_text())
    assert told["stopped"] and len(told["layers"]) == 1
    assert "with the schedules predicted on paper" in result.stdout and "Rows in rows.db" in result.stdout
    assert "stopped with 2 layers left; run it again, and it goes on" in result.stderr


SOFT = """
import torch
from torch import nn


def soft():
    model = nn.Sequential(nn.Linear(32, 16), nn.Softmax(-1), nn.Linear(16, 4)).eval()
    return model, (torch.randn(2, 32),), [torch.randn(8, 32)]
"""


def test_ctrl_c_in_the_layers_leaves_the_ops_on_floats_as_well(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers and a softmax."""
    Path("soft.py").write_text(SOFT)

    def stopped(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("qcompiler.backends.tvm.tuning.tune", stopped)
    result = run("tune soft.py:soft --database rows.db --json told.json")
    assert result.exit_code == 130, result.stderr
    assert json.loads(Path("told.json").read_text())["left"] == 3


def test_two_runs_at_once(run: Run, zoo: Path, tmp_path: Path) -> None:
    """The second begins as soon as the first, which waits a moment behind each layer, has kept one."""
    path = tmp_path / "rows.db"
    command = f"tune {zoo / 'zoo.py'}:residual --database {path} --trials 3"
    waits = (
        "import time; from qcompiler.tune.database import Database; add = Database.add; "
        "Database.add = lambda self, rows: (add(self, rows), time.sleep(0.3)); "
    )
    process = started(command, before=waits)
    while process.poll() is None and not kept(path):
        time.sleep(0.01)
    result = run(command)
    assert result.exit_code == 0, result.stderr
    _, complaint = process.communicate()
    assert process.returncode == 0, complaint
    assert [len(rows) for rows in kept(path).values()] == [3, 3, 3]


def test_a_full_disk_is_told_and_the_next_run_goes_on(run: Run, zoo: Path, tmp_path: Path) -> None:
    """No file of the process may grow beyond 33 kB, which the log of the database soon does."""
    path = tmp_path / "rows.db"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (33_000, 33_000)); "
    process = started(f"tune {zoo / 'zoo.py'}:residual --database {path} --trials 2", before=limit)
    _, complaint = process.communicate()
    assert process.returncode == 1
    assert "takes no more rows, because the disk is full" in complaint and "is kept" in complaint
    before = kept(path)
    assert len(before) < 3
    assert run("tune zoo:residual --database rows.db --trials 2").exit_code == 0
    after = kept(path)
    assert {name: after[name] for name in before} == before and len(after) == 3


def started(command: str, *, before: str = "") -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    code = f"{before}import sys; from qcompiler.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *command.split()], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def kept(path: Path) -> dict[str, list[float]]:
    """Workload -> the seconds of its rows, as another process sees them."""
    found: dict[str, list[float]] = {}
    if path.exists():
        try:
            rows = sqlite3.connect(path).execute("SELECT workload, seconds FROM measured ORDER BY seconds")
            for name, seconds in rows:
                found.setdefault(name, []).append(seconds)
        except sqlite3.OperationalError:  # its table is not there yet
            return {}
    return found
