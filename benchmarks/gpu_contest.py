"""One cell of the GPU benchmark: contenders that compute the same, each gated, then timed in turn.

round 1: A B C    round 2: B C A    ...        over[p] = median over rounds of time(p) / time(this)

What fails its gate is not timed. Memory is found when a cell's turn comes, and given back after it.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.triton.tuning.bench import Contenders, CudaBench
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.products import QUANTIZED
from qcompiler.backends.triton.tuning.tuner import Bench
from qcompiler.tune.measure import Timing, rotated

OK, WRONG, REFUSED, ABSENT, SKIPPED = "ok", "failed gate", "cannot run", "absent", "skipped: budget"
COPY = "copy"  # what memory-bound kernels are compared with
OPS = "qcompiler.backends.triton.ops."

Clock = Callable[[], float]


def op(name: str) -> Any:
    """`torch.ops.qcompiler.triton_*`, in one place."""
    return getattr(torch.ops.qcompiler, f"triton_{name}")


def always_right(name: str, found: Tensor) -> str:
    """Of a vendor's kernel alone, which only says what the device can do."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is asked, and of whom.

    op: what breaks together when its check fails. needs: the modules with the ops; a checkout may lack them.
    bytes, kind: what a contender has to move at least, and the type that it multiplies, by its name.
    peers: the names that are not ours, the baseline first. kernel: whose source its rows depend on.
    """

    op: str
    scheme: str
    M: int = 0
    N: int = 0
    K: int = 0
    prepare: Callable[[torch.device], Contenders]
    peers: tuple[str, ...] = (FLOAT,)
    needs: tuple[str, ...] = ()
    bytes: Callable[[str], float] = lambda name: 0.0
    operations: float = 0.0
    kind: Callable[[str], str] = lambda name: "bf16"
    kernel: str = ""

    @property
    def absent(self) -> str:
        """What it needs and this checkout has not."""
        return ", ".join(name for name in self.needs if find_spec(name) is None)

    @property
    def problem(self) -> Problem:
        return Problem(op=self.op, scheme=self.scheme, M=self.M, N=self.N, K=self.K)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One contender in one cell. seconds: a figure a round. over: how many times faster it is than peers."""

    stage: str
    op: str
    scheme: str
    M: int
    N: int
    K: int
    contender: str
    ours: bool = True
    status: str = OK
    reason: str = ""
    seconds: tuple[float, ...] = ()
    over: Mapping[str, float] = field(default_factory=dict)
    of_copy: float | None = None
    bytes: float = 0.0
    operations: float = 0.0
    kind: str = ""
    error: float | None = None
    workload: str = ""
    kernel: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def middle(self) -> tuple[float, float]:
        """The 20th and the 80th percentile."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, *_, high = statistics.quantiles(self.seconds, n=5, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        low, high = self.middle
        return (high - low) / self.median

    @property
    def quantized(self) -> bool:
        """Whether the codes of activations are made in its time."""
        return self.contender.endswith(QUANTIZED)


class ProcessBench:
    """The same on a CPU, by the time of the process, a call a sample."""

    def __init__(self, contenders: Contenders) -> None:
        self.contenders = contenders

    def gate(self, name: str) -> str:
        return self.contenders.wrong(name, self.contenders.calls[name](0))

    def sample(self, name: str) -> float:
        start = time.process_time()
        self.contenders.calls[name](0)
        return max(time.process_time() - start, 1e-9)


def bench_of(contenders: Contenders, device: torch.device) -> Bench:
    return CudaBench(contenders) if device.type == "cuda" else ProcessBench(contenders)


def blank(stage: str, cell: Cell, status: str, reason: str = "", contender: str = "") -> Figure:
    """What is told of a cell, or of a contender in it, that has no time."""
    return Figure(
        stage=stage, op=cell.op, scheme=cell.scheme, M=cell.M, N=cell.N, K=cell.K, contender=contender,
        ours=contender not in cell.peers, status=status, reason=reason,
    )  # fmt: skip


def measured(
    stage: str, cell: Cell, device: torch.device, *, rounds: int, until: float, clock: Clock
) -> list[Figure]:
    """A figure for each contender, whatever becomes of it; rounds that have no time left are left out."""
    try:
        contenders = cell.prepare(device)
    except Exception as error:  # it needs more than the device has, or has no kernel there
        return [blank(stage, cell, REFUSED, reason(error))]
    bench, lost = bench_of(contenders, device), dict[str, Figure]()
    seconds: dict[str, list[float]] = {}
    for name in contenders.calls:
        if clock() > until:
            lost[name] = blank(stage, cell, SKIPPED, contender=name)
            continue
        found = gated(stage, cell, contenders, bench, name)
        if found.status == OK:
            seconds[name] = []
        else:
            lost[name] = found
    for turn in range(rounds):
        if clock() > until:
            break
        for name in rotated([*seconds], turn % len(seconds)) if seconds else ():
            try:
                seconds[name].append(bench.sample(name))
            except Exception as error:  # a driver's, Triton's: one contender's failure is its own
                lost[name] = blank(stage, cell, REFUSED, reason(error), name)
        seconds = {name: times for name, times in seconds.items() if name not in lost}
    if not any(seconds.values()):
        lost |= {name: blank(stage, cell, SKIPPED, contender=name) for name in seconds}
        return [*lost.values()]
    timing = Timing(seconds={name: tuple(times) for name, times in seconds.items()})
    return [*(timed(stage, cell, name, timing) for name in seconds), *lost.values()]


def gated(stage: str, cell: Cell, contenders: Contenders, bench: Bench, name: str) -> Figure:
    """Whether a contender may be timed. One that raises is not wrong, but of ours it is broken."""
    try:
        why = bench.gate(name)
    except Exception as error:
        ours = name not in cell.peers
        return blank(stage, cell, WRONG if ours else REFUSED, reason(error), name)
    if not why:
        return blank(stage, cell, OK, contender=name)
    return blank(stage, cell, WRONG, why, name)


def timed(stage: str, cell: Cell, name: str, timing: Timing) -> Figure:
    over = {peer: timing.ratio(peer, name) for peer in cell.peers if peer in timing.seconds}
    of_copy = None
    if COPY in over and cell.bytes(name):
        of_copy = over[COPY] * cell.bytes(name) / cell.bytes(COPY)
    return replace(
        blank(stage, cell, OK, contender=name),
        seconds=timing.seconds[name], over=over, of_copy=of_copy, bytes=cell.bytes(name),
        operations=cell.operations, kind=cell.kind(name), workload=cell.problem.text,
        kernel=cell.kernel,
    )  # fmt: skip


def reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
