"""Gradients of DistributedDataParallel that cross in 8 bits: a communication hook, and what it keeps."""

from collections.abc import Generator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from qcompiler.errors import InputError
from qcompiler.training.feedback import ToAll, ToEach, mean_of_all, shard_size
from qcompiler.training.messages import Messages


def compress_gradients(
    model: nn.Module, format: str = "int8", *, block: int = 256, feedback: bool = True
) -> "Compression":
    """Let the gradients of a DistributedDataParallel cross as 8-bit codes; a quarter of float32's bytes.

    format: "int8", "e4m3" or "e5m2"; `block` gradients share a scale. feedback: what rounding loses is kept,
    4 bytes for each parameter, and sent with the next step's gradient; without it small gradients beside
    large ones are lost for good. Returns what is kept, for checkpoints and for the bytes that were sent.
    """
    if not isinstance(model, DistributedDataParallel):
        raise InputError(
            f"a {type(model).__name__} has no communication hook",
            why="its gradients are not averaged in buckets",
            fix="wrap the model in torch.nn.parallel.DistributedDataParallel first",
        )
    names = {
        parameter: name for name, parameter in model.module.named_parameters() if parameter.requires_grad
    }
    state = Compression(
        names, Messages(format=format, block=block), feedback=feedback, group=model.process_group
    )
    model.register_comm_hook(state, send_compressed)
    return state


class Compression:
    """What a process keeps from step to step; `sent` counts the bytes that it sent to others.

    `errors`: by the parameter's name, float32, flat in the order of its memory. They belong to parameters and
    not to buckets, which DDP cuts anew after the first step. They are in units of the gradients as they come:
    after a change of the loss scale one step weighs them by the old one. Where a block is not finite its
    gradients become NaN on every process, and its errors stay as they were.
    """

    def __init__(
        self,
        names: Mapping[Tensor, str],
        messages: Messages,
        *,
        feedback: bool = True,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.names = dict(names)
        self.messages = messages
        self.feedback = feedback
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self.errors: dict[str, Tensor] = {}
        self.sent = 0
        self._vectors: dict[tuple[str, ...], Tensor] = {}
        self.flights: list[Flight] = []

    def error_of(self, parameters: list[Tensor]) -> Tensor:
        """The errors of these parameters, one after the other, as one vector that can be written."""
        bucket = tuple(self.names[parameter] for parameter in parameters)
        if bucket not in self._vectors:
            counts = [parameter.numel() for parameter in parameters]
            fresh = zip(bucket, parameters, strict=True)
            vector = torch.cat(
                [self.errors[name] if name in self.errors else zeros(of) for name, of in fresh]
            )
            self.errors.update(zip(bucket, torch.split(vector, counts), strict=True))
            # What held them before is let go, and with it its memory.
            self._vectors = {old: kept for old, kept in self._vectors.items() if not {*old} & {*bucket}}
            self._vectors[bucket] = vector
        return self._vectors[bucket]

    def state_dict(self) -> dict[str, Any]:
        """The errors of this process; every process saves its own."""
        errors = {name: error.clone() for name, error in self.errors.items()}
        return {"rank": self.rank, "world": self.world, "errors": errors}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on with saved errors, to the same bits; those of another process or model are an InputError."""
        if (saved["rank"], saved["world"]) != (self.rank, self.world):
            raise InputError(
                f"errors of process {saved['rank']} of {saved['world']}",
                why=f"this is process {self.rank} of {self.world}; they are what that one did not send",
                fix="let each load what it saved; another number of processes begins without errors",
            )
        ours = {name: parameter for parameter, name in self.names.items()}
        for name, error in saved["errors"].items():
            if name not in ours or error.numel() != ours[name].numel():
                raise InputError(
                    f'{error.numel()} errors of a parameter "{name}"',
                    why=f"the model has {ours[name].numel()} there" if name in ours else "the model has none",
                    fix="load what the same model saved",
                )
        self.errors = {
            name: error.to(ours[name].device, torch.float32) for name, error in saved["errors"].items()
        }
        self._vectors = {}


def send_compressed(
    state: Compression,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # there, but torch's stubs leave it out
) -> Future[Tensor]:
    """The hook: the bucket's mean over all processes, in place.

    The two crossings of a bucket go on while backward computes: each bucket that becomes ready moves those
    before it one crossing further. All from this thread, and so in the same order on every process; a
    callback of gloo has a thread of its own, where the second crossings of two buckets could change places.
    """
    gradients = bucket.buffer()
    if gradients.layout != torch.strided or not gradients.is_floating_point():
        raise InputError(
            f"gradients of type {gradients.dtype} and layout {gradients.layout}",
            why="a block of codes holds neighbours of a dense tensor of real numbers",
            fix="build embeddings with sparse=False, or leave out the compression",
        )
    on_device = None if gradients.device.type == "cpu" else [gradients.device]
    future: Future[Tensor] = Future(devices=on_device)
    if state.world == 1:
        future.set_result(gradients)
        return future
    if bucket.index() == 0:
        state.flights.clear()  # of a backward that failed on its way
    advance(state.flights)
    state.flights.append(Flight(state, crossing(state, gradients, bucket.parameters(), future)))
    while bucket.is_last() and state.flights:
        advance(state.flights)
    return future


def crossing(
    state: Compression, gradients: Tensor, parameters: list[Tensor], future: Future[Tensor]
) -> Generator[ToEach | ToAll, Tensor, None]:
    """From a bucket's gradients to their mean, in place, and the errors of this process."""
    count = gradients.numel()
    shard = shard_size(count, state.world, state.messages.block)
    whole = torch.zeros(state.world * shard, device=gradients.device)
    given = whole[:count].copy_(gradients)
    error = state.error_of(parameters) if state.feedback else None
    if error is not None:
        given += error
    shards = whole.view(state.world, shard)
    mean = yield from mean_of_all(shards, state.rank, state.messages, gradients.dtype)
    if error is not None:
        torch.where(given.isfinite(), given, error, out=error)
    future.set_result(gradients.copy_(mean.view(-1)[:count]))


class Flight:
    """A bucket on its way: what crosses at the moment, and what is to be done with what comes."""

    def __init__(self, state: Compression, steps: Generator[ToEach | ToAll, Tensor, None]) -> None:
        self.state, self.steps = state, steps
        self.came, self.work = send(next(steps), state)

    def lands(self) -> bool:
        """Wait for what crosses and send what follows from it; whether nothing did."""
        self.work.wait()
        try:
            self.came, self.work = send(self.steps.send(self.came), self.state)
        except StopIteration:
            return True
        return False


def advance(flights: list[Flight]) -> None:
    """Each by one crossing, the oldest first."""
    flights[:] = [flight for flight in flights if not flight.lands()]


def send(what: ToEach | ToAll, state: Compression) -> tuple[Tensor, dist.Work]:
    """Where what comes will be, and when."""
    state.sent += what.sent
    if isinstance(what, ToAll):
        came = what.message.new_empty(state.world, what.message.numel())
        work = dist.all_gather_single(came.view(-1), what.message, group=state.group, async_op=True)
    else:
        came = torch.empty_like(what.messages)
        bytes = [0 if rank == state.rank else came.shape[1] for rank in range(state.world)]
        work = dist.all_to_all_single(
            came.view(-1), what.messages.view(-1), bytes, bytes, group=state.group, async_op=True
        )
    return came, cast(dist.Work, work)


def zeros(parameter: Tensor) -> Tensor:
    return torch.zeros(parameter.numel(), device=parameter.device)
