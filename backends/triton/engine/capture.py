"""Whole graphs replayed on CUDA: one capture for each set of shapes, since launches cost as kernels do.

    inputs  -->  buffers of the capture  -->  replay  -->  copies of its results

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Run: TypeAlias = Callable[[Sequence[Any]], list[Any]]
WARM_UPS = (
    3  # Triton compiles and cuBLAS takes its workspace in the first; the others show it can be repeated
)
MOST = 16  # captures kept: each holds the memory of a call


class Replay(Protocol):
    """A captured call, of inputs in the shapes that it was captured with."""

    def __call__(self, inputs: Sequence[Any]) -> list[Any]: ...


Capture: TypeAlias = Callable[[Run, Sequence[Any]], Replay]


@dataclass(frozen=True, kw_only=True)
class CudaReplay:
    """Static buffers, and the graph between them."""

    graph: Any
    given: Sequence[Any]
    results: Sequence[Any]

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        for buffer, x in zip(self.given, inputs, strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(x)
        self.graph.replay()
        return [y.clone() if isinstance(y, Tensor) else y for y in self.results]


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
        with torch.cuda.graph(graph):
            results = run(given)
    return CudaReplay(graph=graph, given=given, results=results)


@dataclass(frozen=True, kw_only=True)
class Captures:
    """The captures of one executable; calls of several threads take turns, since buffers are shared.

    refused: why calls are not captured, each reason once; they run op by op, and are as right.
    """

    capture: Capture = captured
    kept: dict[Any, Replay | None] = field(default_factory=dict)
    refused: dict[str, None] = field(default_factory=dict)
    turn: Any = field(default_factory=threading.RLock)

    def __call__(self, run: Run, inputs: Sequence[Any]) -> list[Any]:
        with self.turn:
            key = key_of(inputs)
            if key not in self.kept:
                self.kept[key] = self.replay(run, inputs)
            found = self.kept[key]
            return run(inputs) if found is None else found(inputs)

    def replay(self, run: Run, inputs: Sequence[Any]) -> Replay | None:
        if sum(found is not None for found in self.kept.values()) >= MOST:
            self.refused[f"more than {MOST} sets of shapes were called, and further ones run op by op"] = None
            return None
        try:
            return self.capture(run, inputs)
        except RuntimeError as error:  # torch has no narrower one for what CUDA cannot capture
            said = str(error).splitlines() or [type(error).__name__]
            self.refused[f"CUDA cannot capture the model as one graph: {said[0]}"] = None
            return None


def key_of(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """What a capture is fixed to: shapes, types and devices of tensors, and all other inputs as they are."""
    return tuple(
        (tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x) for x in inputs
    )
