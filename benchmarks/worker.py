"""What runs in the processes: writing a case, preparing a contender, and running it round by round."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Case, write_case
from benchmarks.contenders import CONTENDERS
from benchmarks.peers.base import threads
from benchmarks.workloads import WORKLOADS

WARM_UP = 2
CALLS = 3  # in a round, at least


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Seconds, and the bytes of what would be shipped."""

    seconds: float
    size: int | None


@dataclass(frozen=True, kw_only=True)
class Ready:
    """How long opening took, to the first answer; how good the answers are; peak of memory (MB) beyond what
    Python, torch and the data take."""

    seconds: float
    sqnr_db: float
    agreement: float
    memory: float | None


def write(link: Connection, workload: str, case: Case) -> None:
    settle()
    write_case(WORKLOADS[workload], case)
    link.send("written")


def prepare(link: Connection, contender: str, case: Case, folder: Path) -> None:
    settle()
    start = time.perf_counter()
    shipped = CONTENDERS[contender].peer.prepare(case, folder)
    seconds = time.perf_counter() - start
    link.send(Prepared(seconds=seconds, size=None if shipped is None else size(shipped)))


def compete(link: Connection, contender: str, case: Case, folder: Path) -> None:
    """Answer once with Ready, then every slice (seconds) with the seconds of a call, until None."""
    settle()
    metric = case.data().metric
    before = resident("VmRSS")
    start = time.perf_counter()
    bind = CONTENDERS[contender].peer.open(case, folder)
    calls = [bind(inputs) for inputs in metric.inputs()]
    calls[0]()
    seconds = time.perf_counter() - start
    found = metric(lambda *inputs: bind(inputs)())
    if math.isnan(found["sqnr_db"]):
        raise ValueError("the output holds what is no number")
    for _ in range(WARM_UP):
        calls[0]()
    peak = resident("VmHWM")
    link.send(
        Ready(
            seconds=seconds,
            sqnr_db=found["sqnr_db"],
            agreement=found["top1_agreement"],
            memory=None if before is None or peak is None else peak - before,
        )
    )
    while (slice := link.recv()) is not None:
        link.send(timed(calls, slice))


def settle() -> None:
    """A thread for each core, no gradients, denormals as zeros: they are slow, and mean nothing."""
    torch.set_num_threads(threads())
    torch.set_flush_denormal(True)
    torch.set_grad_enabled(False)


def timed(calls: Sequence[Callable[[], Any]], slice: float) -> float:
    """Median seconds of a call, over the test inputs: of the CPU, or with many threads of the clock."""
    clock = time.process_time if threads() == 1 else time.perf_counter
    calls[0]()  # the caches hold what ran before
    spent: list[float] = []
    end = time.perf_counter() + slice
    while len(spent) < CALLS or time.perf_counter() < end:
        call = calls[len(spent) % len(calls)]
        start = clock()
        call()
        spent.append(clock() - start)
    return statistics.median(spent)


def resident(field: str) -> float | None:
    """MB of memory from the kernel: VmRSS now, VmHWM at most; None where it does not say (not on Linux)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
