"""Whole graphs replayed on CUDA: one capture for each set of shapes, since launches cost as kernels do.

    inputs  -->  buffers of the capture  -->  replay  -->  copies of its results

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

MOST captures are kept. A newcomer takes the place of the one that was used least recently, once it has been
called AGAIN times since: a capture takes as long as so many calls, so capturing at most doubles the time of
calls, and shapes that take turns do not chase each other out.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from qcompiler.warn import warn

Run: TypeAlias = Callable[[Sequence[Any]], list[Any]]
WARM_UPS = (
    3  # Triton compiles and cuBLAS takes its workspace in the first; the others show it can be repeated
)
AGAIN = WARM_UPS + 1
MOST = 16  # captures kept: each holds the memory of a call
SEEN = 256  # sets of shapes without a capture, of whose calls is known


class Replay(Protocol):
    """A captured call, of inputs in the shapes that it was captured with."""

    def __call__(self, inputs: Sequence[Any]) -> list[Any]: ...

    def free(self) -> None:
        """Give its memory back; it is called no more."""


Capture: TypeAlias = Callable[[Run, Sequence[Any]], Replay]


@dataclass(frozen=True, kw_only=True)
class CudaReplay:
    """Static buffers, and the graph between them."""

    graph: Any
    given: list[Any]
    results: list[Any]
    device: torch.device

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        for buffer, x in zip(self.given, inputs, strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(x)
        self.graph.replay()
        return [y.clone() if isinstance(y, Tensor) else y for y in self.results]

    def free(self) -> None:
        """When all replays are over: what they compute with is in its memory."""
        torch.cuda.synchronize(self.device)
        self.graph.reset()
        self.given.clear()
        self.results.clear()


def captured(run: Run, inputs: Sequence[Any]) -> Replay:
    """Warm up on a stream beside, as capturing demands, and capture. RuntimeError where CUDA cannot."""
    device = next(x.device for x in inputs if isinstance(x, Tensor))
    given = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    with torch.cuda.device(device):
        beside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it open
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                run(given)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Of other threads, allocations and waits neither fail nor spoil the capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = run(given)
    return CudaReplay(graph=graph, given=given, results=results, device=device)


@dataclass(frozen=True, kw_only=True)
class Captures:
    """The captures of one executable; calls of several threads take turns, since buffers are shared.

    kept: the least recently used first; None of shapes that cannot be captured. waiting: when shapes without
    a place were called. refused: why calls are not captured, each reason once, and with a warning; they run
    op by op, and are as right.
    """

    capture: Capture = captured
    kept: dict[Any, Replay | None] = field(default_factory=dict)
    used: dict[Any, int] = field(default_factory=dict)
    waiting: dict[Any, deque[int]] = field(default_factory=dict)
    refused: dict[str, None] = field(default_factory=dict)
    turn: Any = field(default_factory=threading.RLock)
    clock: Iterator[int] = field(default_factory=count)

    def __call__(self, run: Run, inputs: Sequence[Any]) -> list[Any]:
        with self.turn:
            key, now = key_of(inputs), next(self.clock)
            if key not in self.kept and self.has_place(key, now):
                self.keep(key, run, inputs)
            if key not in self.kept:
                return run(inputs)
            found = self.kept[key] = self.kept.pop(key)
            self.used[key] = now
            return run(inputs) if found is None else found(inputs)

    def has_place(self, key: Any, now: int) -> bool:
        """Whether shapes may be captured: there is room, or they are called and others are not."""
        if len(self.kept) < MOST:
            return True
        self.refuse(
            f"more than {MOST} sets of shapes were called: so many captures are kept, and further shapes run "
            f"op by op until they are called {AGAIN} times while one of those is not"
        )
        calls = self.waiting.pop(key, deque(maxlen=AGAIN))
        calls.append(now)
        oldest = next(iter(self.kept))
        if len(calls) < AGAIN or calls[0] < self.used[oldest]:
            self.waiting[key] = calls
            if len(self.waiting) > SEEN:
                self.waiting.pop(next(iter(self.waiting)))
            return False
        gone = self.kept.pop(oldest)
        del self.used[oldest]
        if gone is not None:
            gone.free()
        return True

    def keep(self, key: Any, run: Run, inputs: Sequence[Any]) -> None:
        """Its capture, or that there is none; memory that has run out says nothing of the next call."""
        try:
            self.kept[key] = self.capture(run, inputs)
        except torch.OutOfMemoryError:
            self.refuse("the device has no memory left for a capture, so calls run op by op until it has")
        except RuntimeError as error:  # torch has no narrower one for what CUDA cannot capture
            said = str(error).splitlines() or [type(error).__name__]
            self.refuse(f"CUDA cannot capture the model as one graph, so it runs op by op: {said[0]}")
            self.kept[key] = None

    def refuse(self, why: str) -> None:
        if why not in self.refused:
            self.refused[why] = None
            warn(why)


def key_of(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """What a capture is fixed to: shapes, types and devices of tensors, and all other inputs as they are."""
    return tuple(
        (tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x) for x in inputs
    )
