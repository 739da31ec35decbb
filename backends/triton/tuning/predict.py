"""Seconds of a kernel on paper: the slowest of arithmetic, memory and L2, in whole waves of programs.

    t = max(F / (P e), B / W, B2 / W2) ceil(w) / w + E / W2 + A / W2 + launches
    w = programs / (processors x resident)

F, B, B2: operations and bytes with all padding. P, W, W2: the device's rates. e: the share of peak that
generated code reaches. E: bytes that programs move when their sums are done, where arithmetic sets the time:
tensor cores wait for them, in every wave, or in the last alone where a processor has another program, or the
next tile, to go on with. A: bytes that a second kernel moves, which adds sums of parts. (Williams et al.
2009; waves as in Osama et al. 2023, arXiv 2301.03598.)
"""

import math
from dataclasses import dataclass

from qcompiler.backends.triton.configurations import shared_of
from qcompiler.backends.triton.tuning.device import Device

REACHED = 0.65  # of peak, until rows say better (residual.py)
REGISTERS = 168  # of a thread, before anything is compiled: enough for 64 to 128 sums and their addresses
THREADS = 2048  # of one processor
FILE = 65536  # registers of one


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one launch has to do, all padding counted.

    kind: the type that tensor cores multiply. operations: 2 per multiply-accumulate. bytes: to and from
    memory, each once. l2_bytes: that programs read together. shared: bytes of shared memory of a program.
    launches: that follow one another, as the sum of partial sums does. ended: bytes that programs move when
    their sums are done. walking: programs of a processor that walk over tiles, 0 where each has one of its
    own; `programs` are the tiles either way. added: bytes that a second kernel moves.
    """

    kind: str
    operations: float
    bytes: float
    l2_bytes: float
    programs: int
    threads: int
    shared: int
    launches: int = 1
    ended: float = 0.0
    walking: int = 0
    added: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """limit: what it waits for."""

    seconds: float
    limit: str
    waves: float


def bound(work: Work, device: Device) -> float:
    """Seconds that no kernel takes less of: all of the device's rate, nothing read twice."""
    return least(work.bytes, device, kind=work.kind, operations=work.operations)


def least(bytes: float, device: Device, *, kind: str = "", operations: float = 0.0) -> float:
    """max(F / P, B / W): the roofline, where nothing is known of a kernel."""
    return max(operations / device.rates.get(kind, math.inf), bytes / device.bandwidth)


def predicted(work: Work, device: Device) -> Predicted:
    terms = {
        "arithmetic": work.operations / (device.rates.get(work.kind, math.inf) * REACHED),
        "memory": work.bytes / device.bandwidth,
        "L2": work.l2_bytes / device.l2_bandwidth,
    }
    limit = max(terms, key=terms.__getitem__)
    at_once = resident(work, device)
    waves = work.programs / (device.processors * at_once)
    # Less than a wave leaves processors idle: memory does not mind as long as enough of them ask for it.
    partial = math.ceil(waves) / waves if limit == "arithmetic" else max(1.0, 0.5 / waves)
    hidden = at_once > 1 or work.walking > 0
    waited = work.ended / (math.ceil(waves) if hidden else 1) if limit == "arithmetic" else 0.0
    seconds = terms[limit] * partial + (waited + work.added) / device.l2_bandwidth
    return Predicted(seconds=seconds + work.launches * device.launch, limit=limit, waves=waves)


def resident(work: Work, device: Device) -> int:
    """Programs that one processor holds at the same time."""
    shared = shared_of(device.capability)
    fits = min(THREADS // work.threads, FILE // (work.threads * REGISTERS), shared // max(work.shared, 1))
    return max(1, min(fits, work.walking or fits))
