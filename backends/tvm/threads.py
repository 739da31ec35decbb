"""Several threads for one program: the turns of a function's shared loop, divided, and a team that runs them.

divided    for i in 0 .. n: S(i)    -->    f(.., first, last): for i in first .. last: S(i)
Team       f()                      -->    f(0)  and, in other threads at once,  f(1), f(2), ..

Turns are independent: two may write the same bytes to one place (the last tile of a line is moved back into
it), never different ones. So the result is that of one thread, to the last bit.

TVM's own pool has one size for the whole process, taken from the environment, and binds threads to cores, the
caller's too. A team belongs to one executable.
"""

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import SHARED, TURNS

# A statement is a vector or two, 0.17 ns on Zen 4, and threads meet in less than a microsecond.
WORTH_SHARING = 30_000
NAME = "qcompiler kernels"  # of the threads, for whoever lists them


def divided(function: Any) -> tuple[Any, int] | None:
    """The function with two more arguments, and the turns of its shared loop; None if that does not pay."""
    extents = set(shared_extents(function.body))
    if not extents or statements(function.body) < WORTH_SHARING:
        return None
    (turns,) = extents
    first, last = (tirx.Var(name, "int32") for name in ("first", "last"))
    parameters = [*function.params, first, last]
    return tirx.PrimFunc(
        parameters, between(function.body, first, last), function.ret_type, function.attrs
    ), turns


def shared_extents(statement: Any) -> Iterator[int]:
    match statement:
        case tirx.For() if SHARED in statement.annotations:
            yield int(statement.annotations[SHARED])
        case tirx.For():
            yield from shared_extents(statement.body)
        case tirx.SeqStmt():
            for each in statement:
                yield from shared_extents(each)


def between(statement: Any, first: Any, last: Any) -> Any:
    """Shared loops from `first` to `last` only."""
    match statement:
        case tirx.For() if SHARED in statement.annotations:
            return tirx.For(statement.loop_var, first, last - first, statement.kind, statement.body)
        case tirx.For():
            body = between(statement.body, first, last)
            return tirx.For(statement.loop_var, statement.min, statement.extent, statement.kind, body)
        case tirx.SeqStmt():
            return tirx.SeqStmt([between(each, first, last) for each in statement])
    return statement


def statements(statement: Any) -> int:
    """How many statements are executed; a loop whose extent is known only then counts once, or as it says."""
    match statement:
        case tirx.For():
            extent = statement.annotations.get(TURNS, statement.extent)
            turns = int(extent) if isinstance(extent, int | tirx.IntImm) else 1
            return turns * statements(statement.body)
        case tirx.SeqStmt():
            return sum(map(statements, statement))
    return 1


@dataclass(kw_only=True)
class Desk:
    """Where a worker finds its part and leaves its error; it sleeps on `given`, and the caller on `done`.

    ended: whether the last part given has. Only that counts; `done` may have been released before.
    """

    given: threading.Lock
    done: threading.Lock
    part: Callable[[], Any] | None = None
    error: BaseException | None = None
    ended: bool = True


def work(desk: Desk) -> None:
    """Parts, one after the other, until there is none."""
    while True:
        desk.given.acquire()
        if desk.part is None:
            return
        try:
            desk.part()
        except BaseException as error:
            desk.error = error
        desk.ended = True
        if desk.done.locked():
            desk.done.release()


def dismiss(desks: Sequence[Desk]) -> None:
    for desk in desks:
        desk.part = None
        desk.given.release()


@dataclass(eq=False)
class Team:
    """The calling thread and `size - 1` others, which start at the first work and end with the team.

    One caller at a time. A process that was forked has none of the threads, and starts its own.
    """

    size: int
    desks: list[Desk] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    core: int | None = None  # where the caller runs, and the others do not
    process: int = 0

    def run(self, part: Callable[[int], Any], give_up: Callable[[], Any]) -> None:
        """part(0) here and part(1), part(2), .. in other threads; returns when all have.

        Parts may wait for each other. `give_up` must end that: it is called if one of them fails, or this
        thread is interrupted.
        """
        desks = self.present()
        self.leave_alone(current_core())
        try:
            for thread, desk in enumerate(desks, 1):
                desk.part, desk.error = partial(guarded, part, thread, give_up), None
                desk.ended = False  # interrupts are looked for behind calls: none before the next line
                desk.given.release()
            part(0)
        except BaseException:
            give_up()
            raise
        finally:
            await_all(desks)
        for desk in desks:
            if desk.error is not None:
                raise desk.error

    def present(self) -> list[Desk]:
        """The desks of the others, who are started if they are not there; all of them or none."""
        if self.process != os.getpid():
            desks = [Desk(given=held(), done=held()) for _ in range(self.size - 1)]
            threads = [threading.Thread(target=work, args=(desk,), name=NAME, daemon=True) for desk in desks]
            try:
                for thread in threads:
                    thread.start()
            except BaseException:  # the system has no more threads
                dismiss(desks)
                raise
            self.desks, self.threads, self.core, self.process = desks, threads, None, os.getpid()
            weakref.finalize(self, dismiss, desks)
        return self.desks

    def leave_alone(self, core: int | None) -> None:
        """Keep the others off a core: the system wakes a thread where its caller runs, which is busy."""
        if core == self.core or not self.threads:
            return
        self.core = core
        others = os.sched_getaffinity(0) - {core}
        started = [thread.native_id for thread in self.threads if thread.native_id is not None]
        for thread in started if others else ():
            with contextlib.suppress(OSError):  # a wish: where it is not granted, they may meet there
                os.sched_setaffinity(thread, others)


@cache
def system() -> Any:
    """The C library of this process, if it tells where a thread runs: Linux."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "sched_getcpu") and hasattr(os, "sched_setaffinity") else None


def current_core() -> int | None:
    return None if system() is None else int(system().sched_getcpu())


def guarded(part: Callable[[int], Any], thread: int, give_up: Callable[[], Any]) -> None:
    try:
        part(thread)
    except BaseException:
        give_up()
        raise


def await_all(desks: Sequence[Desk]) -> None:
    """An interrupt waits as well: until every part has ended, its memory is being written."""
    interrupt: BaseException | None = None
    for desk in desks:
        while not desk.ended:
            try:
                desk.done.acquire(timeout=1)
            except BaseException as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt


def held() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
