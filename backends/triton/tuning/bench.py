"""Seconds of contenders on a GPU: one call for each copy of the weights in a CUDA graph, between two events.

There are so many copies that 128 MB pass between two uses of one: in a network, weights come from memory.
A graph has no launches of the host in it, so what is timed is the kernel.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")
FAR = 128 * 2**20  # bytes between two uses of the same, more than twice any L2 today
WARM = 3  # calls before anything is captured: whoever compiles or allocates does it here
SHORTEST = 2e-3  # seconds of a sample, far above the grain of events


@dataclass(frozen=True, kw_only=True)
class Contenders:
    """calls: by name, what computes the result from the i-th copy of the weights. copies: of these.

    wrong: why a result of the first copy is wrong, "" where it is right.
    """

    calls: Mapping[str, Callable[[int], Tensor]]
    copies: int
    wrong: Callable[[str, Tensor], str]


class CudaBench:
    """Contenders, each gated before it is timed."""

    def __init__(self, contenders: Contenders) -> None:
        self.contenders = contenders
        self.graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self.repeats: dict[str, int] = {}

    def gate(self, name: str) -> str:
        """Of memory that nobody wrote: a kernel that leaves some of it so would show what was right before.

        So a result is spoilt once it is judged, and what a call allocates, sums of parts too, is spoilt
        before it is written. What cannot be captured cannot be timed, and is refused as well.
        """
        call = self.contenders.calls[name]
        with poisoned():
            found, why = attempted(lambda: call(0))
        if found is None:
            return why
        why = self.contenders.wrong(name, found)
        spoil(found)
        if why:
            return why
        graph, why = attempted(lambda: captured(call, self.contenders.copies))
        if graph is not None:
            self.graphs[name] = graph
        return why

    def sample(self, name: str) -> float:
        """Seconds of one call of what passed its gate."""
        if name not in self.repeats:
            once = elapsed(self.graphs[name], 1)
            self.repeats[name] = max(1, round(SHORTEST / once))
        repeats = self.repeats[name]
        return elapsed(self.graphs[name], repeats) / (repeats * self.contenders.copies)


def attempted(act: Callable[[], T]) -> tuple[T | None, str]:
    """What an act on the device gives, or why it cannot be done."""
    try:
        found = act()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:  # of this moment, and no verdict
        raise
    except Exception as error:  # Triton's own are many: it needs more than the device has
        torch.cuda.synchronize()  # an error that stays ends the run, and is no verdict on others
        return None, f"it cannot run: {type(error).__name__}: {error}".partition("\n")[0]
    return found, ""


@contextmanager
def poisoned() -> Iterator[None]:
    """What torch allocates inside is NaN, or the largest integer, until it is written.

    Else it may be what was freed last, with numbers that are right. torch fills it where algorithms have to
    be deterministic; that some of a vendor's are not is of no interest here.
    """
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was[0], warn_only=was[1])


def spoil(found: Any) -> None:
    """Fill results with numbers that are right for nothing, in place."""
    for x in pytree.tree_leaves(found):
        if isinstance(x, Tensor):
            x.fill_(torch.nan if x.is_floating_point() and x.itemsize > 1 else 77)


def copies_of(bytes: int, device: torch.device) -> int:
    """How many copies of so many bytes lie between two uses of one of them; on a CPU one will do."""
    return max(1, -(-FAR // max(bytes, 1))) if device.type == "cuda" else 1


def captured(call: Callable[[int], Tensor], copies: int) -> torch.cuda.CUDAGraph:
    """A graph of one call on each copy, after some calls on a stream of their own, as capturing wants it."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for turn in range(WARM):
            call(turn % copies)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in range(copies):
            call(copy)
    return graph


def elapsed(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    """Seconds of so many replays, by the device's own clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
    begin.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return max(float(begin.elapsed_time(end)) * 1e-3, 1e-9)
