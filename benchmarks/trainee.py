"""A process in which one contender trains one model: what its step holds, how far it is off, its time.

    step = gradients to None; y = model(x) under autocast; loss = mean (y - t)^2 in float32; backward

Weights are float32 and products bfloat16 by autocast, for everybody but the float32 that all are compared
with. There is no optimizer: it would be the same for all.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from benchmarks.large import LARGE, SMALL
from benchmarks.replicas import allocated_at_most, settled
from qcompiler.training import Training

REFERENCE, BASELINE = "float32 eager", "bf16 compile"
GRADIENTS = "gradients.pt"  # the reference's, which others compare theirs with
MOST = 100  # steps in a round


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to train; recipe and memory are ours.

    measures: whether compiling it times something on the device, which nobody else should use meanwhile.
    """

    engine: Literal["eager", "inductor", "ours"] = "ours"
    half: bool = True
    checkpoint: bool = False
    recipe: str = "float"
    memory: str | float = "keep"
    measures: bool = False


CONTENDERS: Mapping[str, Contender] = {
    REFERENCE: Contender(engine="eager", half=False),
    "bf16 eager": Contender(engine="eager"),
    BASELINE: Contender(engine="inductor"),
    "bf16 compile, checkpointing": Contender(engine="inductor", checkpoint=True),
    "act8": Contender(memory="act8"),
    "act4": Contender(memory="act4"),
    # Bits, and what is computed again, are the planner's choice.
    "planned, half of the peak": Contender(memory=0.5, measures=True),
    "int8, act8": Contender(recipe="int8", memory="act8", measures=True),
    "fp8-hybrid, act8": Contender(recipe="fp8-hybrid", memory="act8"),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """Who trains what, where. folder: shared by all who train this model."""

    model: str
    contender: str
    device: str
    small: bool
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one step; bytes are those of the allocator, and of nothing that is there before the step.

    held: between forward and backward, result and loss among it; None on a CPU. peak: at most, gradients
    among it. left: at the end, gradients and nothing else. crossing, crossing_before: what the plan says that
    crosses, and what would in bfloat16 without it. few, products: those of the step in few bits, and all,
    where a recipe wants some. gradient: its distance from float32's, relative; None where there is none to
    compare with. ready: seconds to build, compile and run the first step.
    """

    held: int | None
    peak: int
    left: int
    crossing: int | None
    crossing_before: int | None
    few: int | None
    products: int | None
    loss: float
    gradient: float | None
    ready: float


class Trainee:
    """One model that trains in one way."""

    def __init__(self, work: Work) -> None:
        start = time.perf_counter()
        self.work, self.device = work, torch.device(work.device)
        self.how, subject = CONTENDERS[work.contender], (SMALL if work.small else LARGE)[work.model]
        with self.device:  # drawn where it is used, the same in every process
            torch.manual_seed(0)
            self.model = subject.build().train()
            self.inputs = subject.batch()
            with torch.no_grad(), self.autocast():
                like = self.model(*self.inputs)
            torch.manual_seed(1)
            self.wanted = torch.randn(like.shape)
        del like
        if self.how.checkpoint:
            apply_activation_checkpointing(self.model, check_fn=lambda part: isinstance(part, subject.layer))
        self.training: Training | None = None
        self.run = self.compiled()
        self.step()
        settled(self.device)
        self.ready = time.perf_counter() - start

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.how.half)

    def compiled(self) -> Callable[..., Any]:
        if self.how.engine == "eager":
            return self.model
        if self.how.engine == "ours":
            self.training = Training(recipe=self.how.recipe, memory=self.how.memory, verify=False)  # type: ignore[arg-type]
        backend: Any = self.training or "inductor"
        return torch.compile(self.model, backend=backend, fullgraph=True, dynamic=False)

    def loss(self) -> Tensor:
        with self.autocast():
            y = self.run(*self.inputs)
        return F.mse_loss(y.float(), self.wanted)

    def step(self) -> None:
        self.model.zero_grad()
        torch.autograd.backward(self.loss())

    def figures(self) -> Figures:
        gradient, loss = self.apart()
        self.model.zero_grad()
        held = self.held()
        peak = allocated_at_most(self.step, self.device)
        left = sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None)
        pieces = self.training.pieces if self.training else None
        computes = pieces and self.how.recipe != "float"
        rows = [row for piece in pieces or () for row in piece.products]
        return Figures(
            held=held, peak=peak, left=left, loss=loss, gradient=gradient,
            crossing=sum(piece.after.crossing for piece in pieces) if pieces else None,
            crossing_before=sum(piece.before.crossing for piece in pieces) if pieces else None,
            few=sum(row.formats != "float" for row in rows) if computes else None,
            products=len(rows) if computes else None,
            ready=self.ready,
        )  # fmt: skip

    def held(self) -> int | None:
        if self.device.type != "cuda":
            return None
        before = torch.cuda.memory_allocated(self.device)
        loss = self.loss()
        held = torch.cuda.memory_allocated(self.device) - before
        torch.autograd.backward(loss)
        del loss
        self.model.zero_grad()
        return held

    def apart(self) -> tuple[float | None, float]:
        """The distance of the gradient from the reference's, and the loss; the reference leaves its own."""
        self.model.zero_grad()
        loss = self.loss()
        torch.autograd.backward(loss)
        found = [p.grad for p in self.model.parameters() if p.grad is not None]
        path = self.work.folder / GRADIENTS
        if self.work.contender == REFERENCE:
            torch.save([gradient.cpu() for gradient in found], path)
        if not path.exists():
            return None, loss.item()
        exact = torch.load(path, mmap=True)
        off = length = 0.0
        for ours, theirs in zip(found, exact, strict=True):
            there = theirs.to(self.device)
            off += float((ours - there).double().square().sum())
            length += float(there.double().square().sum())
        return (off / length) ** 0.5, loss.item()

    def seconds(self, slice: float) -> float:
        """Of one of as many steps as fill a slice, by the device's own clock, when memory has been found."""
        clock = by_events if self.device.type == "cuda" else by_cpu
        once = clock(self.step, 1)  # slower than the others, for it finds memory
        steps = max(1, min(MOST, round(slice / max(once, 1e-6))))
        found = clock(self.step, steps)
        self.model.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # for whoever runs next
        return found


def by_events(step: Callable[[], object], steps: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / steps


def by_cpu(step: Callable[[], object], steps: int) -> float:
    start = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - start) / steps


def train(link: Connection, work: Work) -> None:
    """Answer with what a step holds, then every slice of seconds with the seconds of a step, until None."""
    if work.device == "cpu":
        torch.set_num_threads(1)
    try:
        trainee = Trainee(work)
    except BackendCompilerFailed as error:
        raise error.inner_exception from error  # which is the reason
    link.send(trainee.figures())
    if work.device == "cuda":
        torch.cuda.empty_cache()
    while (asked := link.recv()) is not None:
        link.send(trainee.seconds(asked))
