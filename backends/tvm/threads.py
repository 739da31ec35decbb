"""Several threads for one function: the turns of its shared loop, divided.

divided    for i in 0 .. n: S(i)    -->    f(.., first, last): for i in first .. last: S(i)
Team       f(.., 0, n)              -->    f(.., 0, n / 2)  and, in another thread,  f(.., n / 2, n)

Turns are independent: two may write the same bytes to one place (the last tile of a line is moved back into
it), never different ones. So the result is that of one thread, to the last bit.

TVM's own pool launches in 9 us where its threads sleep, and a team in 14 (medians, Zen 4); in 1 us if they
spin, which burns a core while nothing runs. But its size is one for the whole process, taken from the
environment, and it binds threads to cores, the caller's too. A team belongs to one executable.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import SHARED

# A statement is a vector or two, 0.17 ns on Zen 4: 50 us become 25, and a launch costs 14.
WORTH_SHARING = 300_000
NAME = "qcompiler kernels"  # of the threads, for whoever lists them

Function = Callable[..., Any]


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
    """How many statements are executed; loops whose extent is known only then count once."""
    match statement:
        case tirx.For():
            extent = statement.extent
            turns = int(extent) if isinstance(extent, tirx.IntImm) else 1
            return turns * statements(statement.body)
        case tirx.SeqStmt():
            return sum(map(statements, statement))
    return 1


@dataclass(kw_only=True)
class Desk:
    """Where a worker finds its part and leaves its error; it sleeps on `given`, and the caller on `done`."""

    given: threading.Lock
    done: threading.Lock
    part: Callable[[], Any] | None = None
    error: BaseException | None = None


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
    process: int = 0

    def run(self, function: Function, turns: int, *arguments: Any) -> None:
        """function(*arguments, first, last) for parts that together are 0 .. turns; returns when all have."""
        ends = [turns * i // self.size for i in range(self.size + 1)]
        busy: list[Desk] = []
        try:
            for desk, first, last in zip(self.present(), ends[1:], ends[2:], strict=False):
                desk.part = partial(function, *arguments, first, last)
                desk.given.release()
                busy.append(desk)
            function(*arguments, 0, ends[1])
        finally:
            for desk in busy:
                await_end(desk)
        for desk in busy:
            if desk.error is not None:
                error, desk.error = desk.error, None
                raise error

    def present(self) -> list[Desk]:
        if self.process != os.getpid():
            self.process = os.getpid()
            self.desks = [Desk(given=held(), done=held()) for _ in range(self.size - 1)]
            for desk in self.desks:
                threading.Thread(target=work, args=(desk,), name=NAME, daemon=True).start()
            weakref.finalize(self, dismiss, self.desks)
        return self.desks


def await_end(desk: Desk) -> None:
    """An interrupt waits as well: until the part has ended, its memory is being written."""
    interrupt: BaseException | None = None
    while True:
        try:
            desk.done.acquire()
        except BaseException as error:
            interrupt = error
        else:
            break
    if interrupt is not None:
        raise interrupt


def held() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
