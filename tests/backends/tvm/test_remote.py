"""Schedules measured on other machines: a tracker and two servers, one of which dies in the middle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from qcompiler.backends.tvm.build import host, uses
from qcompiler.backends.tvm.isa import AVX2, Isa
from qcompiler.backends.tvm.remote import Remote, Server
from qcompiler.backends.tvm.schedules import ordered
from qcompiler.backends.tvm.tuning import Bench, Lost, Prepare, jobs, tune
from qcompiler.errors import TuningError
from qcompiler.tune.database import Core, open_database
from tests.backends.tvm.sets import RUNNABLE
from tests.backends.tvm.test_conv import pytestmark
from tests.backends.tvm.test_tuning import LAYERS

pytest.importorskip("tornado", reason="TVM's tracker wants tornado: pip install 'qcompiler[rpc]'")
__all__ = ["pytestmark"]
KEY = "machine"
PATIENCE = 90.0  # seconds for a process that imports TVM on a busy machine


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start one of TVM's programs; each with the processes that it starts is a group, killed at the end."""
    groups = []

    def started(program: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"tvm.exec.{program}", "--host", "127.0.0.1", *options]
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        groups.append(process)
        return process

    yield started
    for process in groups:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """As a system that runs out of memory: all that belongs to it at once, and its connections are closed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def tracker(start: Start) -> str:
    port = free_port()
    start("rpc_tracker", "--port", str(port), "--port-end", str(port + 1))
    return f"127.0.0.1:{port}"


def server(start: Start, tracker: str) -> subprocess.Popen[bytes]:
    port = free_port()
    place = ("--port", str(port), "--port-end", str(port + 1))
    return start("rpc_server", *place, "--tracker", tracker, "--key", KEY)


def until_there_are(count: int, tracker: str) -> Remote:
    """Wait for servers to report to the tracker."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            remote = Remote(tracker, KEY)
            if len(remote.crew()) == count:
                return remote
        except TuningError:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, f"there are no {count} servers"
        time.sleep(0.2)


def test_a_server_dies_and_the_other_takes_over(start: Start, tracker: str, tmp_path: Path) -> None:
    servers = [server(start, tracker) for _ in range(2)]
    remote = until_there_are(2, tracker)
    assert remote.processor == host().name
    assert uses(host()) <= remote.features and "avx10.2" not in remote.features
    left = {*AVX2.features, *uses(AVX2.processor)}
    remote.features, whole = left, remote.features  # as where a virtual machine masks the rest
    if AVX2 in RUNNABLE:
        assert remote.isa == AVX2 and uses(remote.target) <= left
    remote.features = whole
    isa, core = remote.isa, Core(isa=remote.isa.name, processor=remote.processor)
    begun: list[Any] = []

    def watched(prepare: Prepare) -> Prepare:
        def prepared(layer: Any, schedules: Sequence[Any], isa: Isa) -> Bench:
            bench = prepare(layer, schedules, isa)  # on the server, with a session of its own
            begun.append(layer)
            if len(begun) == 2:
                kill(servers[0])
            return bench

        return prepared

    crews = []

    def crew() -> list[Prepare]:
        crews.append([watched(prepare) for prepare in remote.crew()])
        return crews[-1]

    with open_database(tmp_path / "rows.db") as database:
        waiting = jobs(LAYERS, [], core, isa, 3)
        assert tune(waiting, database, crew, core, isa) == 0
        rows = database.rows(core)
        assert len(rows) == 12 and all(0 < row.seconds < 1 for row in rows)
        assert len(begun) <= len(LAYERS) + 1  # the layer in work, and no other, was begun again
        assert len(crews[0]) == 2 and len(remote.crew()) == 1

        kill(servers[1])
        end = time.monotonic() + PATIENCE
        with pytest.raises(
            TuningError, match=f"no server of '{KEY}' is left at '{tracker}'.*all rows are kept"
        ):
            while time.monotonic() < end:
                tune(jobs(LAYERS, [], core, isa, 2), database, remote.crew, core, isa)
        assert len(database.rows(core)) == 12


@pytest.mark.thorough
def test_a_server_that_hangs_is_lost(start: Start, tracker: str) -> None:
    """As a machine that loses its power: its connections stay open, and nothing comes through them."""
    process = server(start, tracker)
    remote = until_there_are(1, tracker)
    bench = Server(remote).bench(LAYERS[0], ordered(LAYERS[0], remote.isa)[:1], remote.isa)
    assert 0 < bench.sample(0) < 1
    bench.patience = 1.0
    rescue = threading.Timer(PATIENCE, kill, [process])  # else a test that fails would hang as well
    rescue.start()
    os.killpg(process.pid, signal.SIGSTOP)
    with pytest.raises(Lost, match="there was no answer for 1 s"):
        bench.sample(0)
    del bench  # what lies on the server is not waited for
    assert rescue.is_alive()
    rescue.cancel()
    kill(process)


class Unreachable(Remote):
    """A tracker that lists a server at an address where nobody is."""

    tries = 0

    def crew(self) -> Sequence[Prepare]:
        return [Server(self).bench]

    def session(self) -> Any:
        self.tries += 1
        assert self.tries < 10, "asked without end"
        raise OSError("no route to host")


class Silent(Unreachable):
    """The same where whoever asks waits."""

    def session(self) -> Any:
        threading.Event().wait(10)
        return super().session()


@pytest.mark.parametrize(
    ("remote", "why"), [(Unreachable, "no route to host"), (Silent, "there was no answer for 0.1 s")]
)
def test_servers_that_cannot_be_reached_are_told(remote: type[Remote], why: str) -> None:
    with pytest.raises(TuningError, match=f"no server of '{KEY}' at 'there:1' can be reached, because {why}"):
        remote("there:1", KEY, patience=0.1)


def test_a_tracker_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match=r"there is no tracker at '127\.0\.0\.1:1'"):
        Remote("127.0.0.1:1", KEY)
