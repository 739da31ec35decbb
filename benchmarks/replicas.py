"""A process that trains a replica, and what its step computes, holds and sends: counted, not guessed."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from qcompiler.models.charlm import cross_entropy, settle
from qcompiler.models.decoder import Decoder, Shape
from qcompiler.training.communication import Compression, compress_gradients
from qcompiler.training.finetune.llama import Reader

WAYS: Mapping[str, str | None] = {"float": None, "int8": "int8", "e4m3": "e4m3"}
"""How gradients cross -> the format of their codes; None is torch's own all-reduce."""

IO = Path("/proc/self/io")
WARM_UP = 3  # steps; DDP cuts its buckets anew after the first


@dataclass(frozen=True, kw_only=True)
class Work:
    """One model and one global batch, however many processes share it."""

    shape: Shape
    batch: int
    device: str = "cpu"

    def model(self) -> nn.Module:
        """The same weights wherever it is called."""
        torch.manual_seed(0)
        decoder = Decoder(self.shape)
        settle(decoder)
        return Reader(decoder).train()

    def rows(self, rank: int, world: int) -> Tensor:
        """This process's share of the batch: tokens [batch / world, positions + 1]."""
        size = (self.batch, self.shape.positions + 1)
        tokens = torch.randint(self.shape.vocabulary, size, generator=torch.Generator().manual_seed(1))
        return tokens.chunk(world)[rank]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Of one step of one process.

    flops: of the products of forward and backward, attention's as two whole ones. held: bytes of weights,
    gradients, the optimizer's state and errors. peak: bytes of `held` and of what the step has allocated at
    its highest. sent: bytes of gradients for other processes; of an all-reduce those of a ring. written: what
    the kernel counts that this process wrote, headers and all; None where it does not, or GPUs send by
    themselves.
    """

    flops: int
    held: int
    peak: int
    sent: int
    written: int | None


class Replica:
    """A model that trains in one way."""

    def __init__(self, work: Work, way: str, rank: int, world: int) -> None:
        self.device = torch.device(work.device, rank) if work.device == "cuda" else torch.device("cpu")
        model = work.model().to(self.device)
        self.weights = [*model.parameters()]
        rows = work.rows(rank, world).to(self.device)
        self.inputs, self.labels = rows[:, :-1], rows[:, 1:]
        # As products: the counter knows no fused attention of a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
            cross_entropy(model(self.inputs), self.labels).backward()  # type: ignore[no-untyped-call]
        self.flops = int(flops.get_total_flops())
        model.zero_grad()
        self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        format = WAYS[way]
        self.compression: Compression | None = compress_gradients(self.model, format) if format else None
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-3)

    def step(self) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(self.model(self.inputs), self.labels))
        self.optimizer.step()

    def held(self) -> int:
        kept = [state for of in self.optimizer.state.values() for state in of.values()]
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        errors = self.compression.errors.values() if self.compression else ()
        return storage_bytes([*self.weights, *gradients, *kept, *errors])

    def sent(self) -> int:
        """Bytes in one step by torch's own all-reduce; since the beginning by ours."""
        if self.compression:
            return self.compression.sent
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        world = dist.get_world_size()
        return 2 * (world - 1) * sum(gradient.nbytes for gradient in gradients) // world

    def counted(self) -> Counted:
        for _ in range(WARM_UP):
            self.step()
        before, wrote = self.sent() if self.compression else 0, self.written()
        self.step()
        sent, written = self.sent() - before, self.written()
        dist.barrier()
        return Counted(
            flops=self.flops, held=self.held(), peak=self.held() + allocated_at_most(self.step, self.device),
            sent=sent, written=None if wrote is None or written is None else written - wrote,
        )  # fmt: skip

    def written(self) -> int | None:
        return bytes_written() if self.device.type == "cpu" else None


def train(link: Connection, work: Work, rank: int, world: int, ways: Iterable[str], meeting: str) -> None:
    """Answer with what each way counts, then every (way, steps) with the seconds of a step, until None."""
    if work.device == "cuda":
        torch.cuda.set_device(rank)
    torch.set_flush_denormal(True)
    backend = "nccl" if work.device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=world)
    replicas = {way: Replica(work, way, rank, world) for way in ways}
    link.send({way: replica.counted() for way, replica in replicas.items()})
    while (asked := link.recv()) is not None:
        way, steps = asked
        link.send(seconds(replicas[way].step, steps, replicas[way].device))
    dist.destroy_process_group()


def seconds(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Of a step by the clock, since waiting for others is a part of it; all begin together."""
    step()  # the caches hold what ran before
    dist.barrier()
    settled(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    settled(device)
    return (time.perf_counter() - start) / steps


def settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated_at_most(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call has allocated, and not yet freed, at its highest: by the allocator's own account."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        step()
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Of all tensors together; what several share counts once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def bytes_written() -> int | None:
    """What this process has written to sockets and files so far; None where the kernel does not say."""
    if not IO.exists():
        return None
    return int(next(line for line in IO.read_text().splitlines() if line.startswith("wchar")).split()[1])
