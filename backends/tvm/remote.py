"""The same benches on other machines, through TVM's own tracker and servers.

    tracker:   python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190
    server:    python -m tvm.exec.rpc_server --tracker HOST:9190 --key KEY

Kernels are compiled and linked here, for the processor that the server says it has, and sent as one shared
library, so a server needs TVM and no compiler. All servers of a key are taken for machines of one kind. Times
are those of the server's clock on the wall: nothing else should run there. A server that does not answer is
lost like one whose connection ends; where none can be reached, or all are lost again and again, it is told.
"""

import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tvm import rpc, runtime

from qcompiler.backends.tvm.build import compiled, linked, safest, spelled
from qcompiler.backends.tvm.isa import ISAS, Isa, Processor, isa_for
from qcompiler.backends.tvm.measure import functions_of
from qcompiler.backends.tvm.probe import Argument, turns
from qcompiler.backends.tvm.tuning import LOSSES, Lost, Prepare
from qcompiler.errors import TargetError, TuningError

REACHED = 5.0  # seconds for a tracker to answer
SESSIONS = 3  # tries to get a session before a server counts as lost
ANSWER = 60.0  # seconds for a server to do what it was asked: a session, all of a layer sent, a sample

T = TypeVar("T")


class Remote:
    """The servers of one key behind a tracker."""

    def __init__(self, tracker: str, key: str, *, patience: float = ANSWER) -> None:
        self.address, self.key, self.patience = tracker, key, patience
        host, colon, port = tracker.rpartition(":")
        if not colon or not port.isdigit():
            raise TuningError(f"'{tracker}' is no address of a tracker", fix="write HOST:PORT")
        self.host, self.port = host, int(port)
        self.named, self.features = self.asked()

    @property
    def isa(self) -> Isa:
        """The best instruction set of the servers; raises TargetError if there is none of ours."""
        found = isa_for(self.features)
        if found is None:
            raise TargetError(
                f"the servers of '{self.key}' cannot run our kernels",
                why=f"their processor, {self.named}, has no {' and '.join(ISAS[-1].features)}",
                fix="name the key of other servers",
            )  # fmt: skip
        return found

    @property
    def target(self) -> Processor:
        """What is compiled for."""
        return safest(Processor(name=self.named), self.isa, self.features)

    @property
    def processor(self) -> str:
        return self.target.name

    def crew(self) -> Sequence[Prepare]:
        """One for each server that the tracker knows; raises TuningError if there is none."""
        try:
            socket.create_connection((self.host, self.port), REACHED).close()  # TVM itself tries for a minute
            known = answered(self.summary, self.patience)["server_info"]
        except (OSError, RuntimeError) as error:
            raise TuningError(
                f"there is no tracker at '{self.address}'", why=first_line(error),
                fix="start one with `python -m tvm.exec.rpc_tracker`",
            ) from error  # fmt: skip
        servers = [entry for entry in known if entry["key"] == f"server:{self.key}"]
        if not servers:
            raise TuningError(
                f"no server of '{self.key}' is left at '{self.address}'",
                fix="start one with `python -m tvm.exec.rpc_server` and run it again: all rows are kept",
            )  # fmt: skip
        return [Server(self).bench for _ in servers]

    def asked(self) -> tuple[str, set[str]]:
        """What LLVM calls the processor of the first server that answers, and what is not masked there."""
        for _ in range(LOSSES):
            self.crew()
            try:
                with losing():
                    return answered(self.detected, self.patience)
            except Lost as error:
                lost = error
        raise TuningError(
            f"no server of '{self.key}' at '{self.address}' can be reached", why=str(lost),
            fix="see that its address is known here (--custom-addr), and that nobody else holds it",
        ) from lost  # fmt: skip

    def detected(self) -> tuple[str, set[str]]:
        session = self.session()
        name = str(session.get_function("target.llvm_get_system_cpu")())
        found = session.get_function("tvm.codegen.llvm.GetHostCPUFeatures")()
        # A map stays on the server; its text does not.
        return name, there(str(session.get_function("ffi.ReprPrint")(found)))

    def summary(self) -> Any:
        return rpc.connect_tracker(self.host, self.port).summary()

    def session(self) -> Any:
        return rpc.connect_tracker(self.host, self.port).request(self.key, max_retry=SESSIONS)


def there(features: str) -> set[str]:
    """{"avx2": T.bool(True), "xop": T.bool(False)}  -->  avx2, in the spelling of Linux"""
    return spelled(re.findall(r'"([^"]+)": \S*\bTrue\b', features))


class Server:
    """One server, asked for when the first bench is wanted and held from then on."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.session: Any = None

    def bench(self, layer: Any, schedules: Sequence[Any], isa: Isa) -> "RemoteBench":
        with losing():
            self.session = self.session or answered(self.remote.session, self.remote.patience)
        return RemoteBench(self.session, self.remote, layer, schedules, isa)


class RemoteBench:
    """The candidates of one layer, ready to run on a server."""

    def __init__(self, session: Any, remote: Remote, layer: Any, schedules: Sequence[Any], isa: Isa) -> None:
        functions, given = functions_of(layer, schedules, isa)
        self.session, self.patience, self.turns = session, remote.patience, turns(given)
        with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
            # A name of its own: of two libraries with one name a server has only the first.
            library = Path(folder) / f"{Path(folder).name}.so"
            linked(compiled(functions, remote.target), library)
            with losing():
                answered(lambda: self.send(library, given, len(schedules)), self.patience)

    def send(self, library: Path, given: Sequence[Argument], count: int) -> None:
        """In one thread all of it: whoever waits in vain holds nothing that lies on the server."""
        self.session.upload(str(library))
        module = self.session.load_module(library.name)
        self.session.remove(library.name)
        device = self.session.cpu(0)
        self.memory = [runtime.tensor(a.fresh(), device) for a in given]
        self.timers = [module.time_evaluator(f"probe_{i}", device, number=1) for i in range(count)]

    def sample(self, index: int) -> float:
        """Seconds of one call of a candidate, its weights far; TVM runs the probe once before it times it."""
        with losing():
            return answered(lambda: self.timed(index), self.patience)

    def timed(self, index: int) -> float:
        return float(self.timers[index](*self.memory).mean) / self.turns


def answered(ask: Callable[[], T], patience: float) -> T:
    """What a call returns; raises TimeoutError where it has not returned after so many seconds.

    It waits on in a thread of its own, and keeps what it uses: to free what lies on a server asks it as well.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # told where it is waited for
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(patience)
    except TimeoutError as error:
        if answer.done():
            raise
        raise TimeoutError(f"there was no answer for {patience:g} s") from error


@contextmanager
def losing() -> Iterator[None]:
    """Whatever goes wrong with a connection loses the server; what goes wrong on it is told."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if "Error caught from RPC call" in str(error):
            raise TuningError("a server cannot run a kernel", why=str(error)) from error
        raise Lost(first_line(error)) from error


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
