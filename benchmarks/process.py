"""Work in a process of its own: own memory, a thread for each core, and a crash that hurts nobody else."""

import multiprocessing as mp
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any


def variables(threads: int) -> dict[str, str]:
    """What libraries read when they are loaded, so it must stand before the process starts."""
    count = str(threads)
    return {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What a process sends in place of an answer."""

    reason: str


class Lost(Exception):
    """A process failed; its message is the reason, in one sentence."""


class Worker:
    """A process that runs `work(link, *args)` and answers what it is asked."""

    def __init__(self, work: Callable[..., None], *args: Any, cores: Sequence[int], log: Path) -> None:
        context = mp.get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process = context.Process(target=enter, args=(theirs, cores, log, work, args), daemon=True)
        os.environ.update(variables(len(cores)))
        self.process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, message: Any) -> None:
        try:
            self.link.send(message)
        except OSError as error:
            raise Lost(self.epitaph()) from error

    def receive(self, *, patience: float) -> Any:
        """The next answer, waiting at most `patience` seconds. Raises Lost."""
        if not self.link.poll(patience):
            self.process.kill()
            raise Lost(f"no answer in {patience:g} s")
        try:
            answer = self.link.recv()
        except (EOFError, OSError) as error:
            raise Lost(self.epitaph()) from error
        if isinstance(answer, Failed):
            raise Lost(answer.reason)
        return answer

    def epitaph(self) -> str:
        self.process.join(5)
        return f"the process ended with code {self.process.exitcode}"

    def close(self) -> None:
        self.link.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


def enter(
    link: Connection, cores: Sequence[int], log: Path, work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    """Where the process begins: what it prints goes to the log, what goes wrong to its parent."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, set(cores))
        work(link, *args)
    except EOFError:
        return  # the parent has gone
    except Exception as error:
        traceback.print_exc()
        link.send(Failed(reason=sentence(error)))


def sentence(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f": {lines[0]}" if lines else ""
    return f"{type(error).__name__}{said}"[:200]
