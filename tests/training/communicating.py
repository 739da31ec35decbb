"""One of two processes whose gradients cross in 8 bits: `communicating.py RANK FOLDER`; fails as one does."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import qcompiler as qc
from qcompiler.errors import InputError
from qcompiler.training.communication import Compression

WIDTH, STEPS, RATE = 64, 5, 0.5
IO = Path("/proc/self/io")


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Sizes that are no multiples of a block or of two."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 129), nn.Tanh(), nn.Linear(129, 33), nn.Linear(33, 1)).to(dtype)


def replica(model: nn.Module, **options: Any) -> DistributedDataParallel:
    """Several buckets, which DDP cuts anew after the first step."""
    return DistributedDataParallel(model, bucket_cap_mb=0.01, **options)


def train(model: nn.Module, rank: int, steps: range, scale: float = 1.0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in steps:
        x = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(10 * step + rank))
        optimizer.zero_grad()
        (scale * model(x.to(next(model.parameters()).dtype)).float().square().mean()).backward()
        optimizer.step()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def same_everywhere(x: Tensor) -> bool:
    of_first = x.clone()
    dist.broadcast(of_first, src=0)
    return torch.equal(x, of_first)


def replicas_stay_equal_and_near_to_float(rank: int) -> None:
    """Five steps are as far apart as one gradient is from its codes, not five."""
    exact = network()
    start = flat(exact)
    train(replica(exact), rank, range(STEPS))
    for format, apart in {"int8": 1 / 127, "e4m3": 2**-4, "e5m2": 2**-3}.items():
        ours = network()
        model = replica(ours)
        qc.compress_gradients(model, format)
        train(model, rank, range(STEPS))
        assert same_everywhere(flat(ours)), format
        assert 0 < (flat(ours) - flat(exact)).norm() < apart * (flat(exact) - start).norm(), format


def options_of_ddp_change_nothing(rank: int) -> None:
    """A parameter that no forward reads has no gradient, and a bucket all the same."""
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for options in ({}, {"gradient_as_bucket_view": True}, {"static_graph": True}):
            ours = network(dtype)
            model = replica(ours, **options)
            qc.compress_gradients(model, "e4m3")
            train(model, rank, range(2))
            found.append(flat(ours))
            assert same_everywhere(flat(ours)), (dtype, options)
        assert torch.equal(found[0], found[1]) and bool(found[2].isfinite().all()), dtype
    ours = network()
    unread = nn.Parameter(torch.ones(300))
    ours.register_parameter("unread", unread)
    model = replica(ours, find_unused_parameters=True)
    qc.compress_gradients(model)
    train(model, rank, range(3))
    assert same_everywhere(flat(ours)) and torch.equal(unread, torch.ones(300))


def without_feedback_nothing_is_kept(rank: int) -> None:
    ours = network()
    model = replica(ours)
    state = qc.compress_gradients(model, feedback=False)
    train(model, rank, range(2))
    assert same_everywhere(flat(ours)) and not state.errors and state.sent


def what_is_missing_is_what_is_held(rank: int) -> None:
    """Gradients that do not depend on the weights: float's weights are ours - rate mean(e), at any step."""
    exact, ours = (nn.Sequential(nn.Linear(WIDTH, 65), nn.Linear(65, 3)) for _ in range(2))
    ours.load_state_dict(exact.state_dict())
    wrapped = (replica(exact), replica(ours))
    state = qc.compress_gradients(wrapped[1], "e5m2", block=32)
    optimizers = [torch.optim.SGD(model.parameters(), lr=RATE) for model in (exact, ours)]
    for step in range(STEPS):
        draws = torch.Generator()
        for replicated, optimizer in zip(wrapped, optimizers, strict=True):
            draws.manual_seed(10 * step + rank)
            optimizer.zero_grad()
            # d/dw of sum(w * c) is c, whatever w; the model's own forward tells DDP that a step begins
            loss = replicated(torch.zeros(1, WIDTH)).sum() * 0
            for parameter in replicated.parameters():
                loss = loss + (parameter * torch.randn(parameter.shape, generator=draws)).sum()
            loss.backward()
            optimizer.step()
    held = torch.cat([state.errors[name] for name, _ in ours.named_parameters()])
    dist.all_reduce(held)
    assert float(held.abs().max()) > 0.01
    torch.testing.assert_close(flat(ours) - RATE * held / 2, flat(exact), rtol=0, atol=STEPS * 2**-20)


def bytes_that_were_sent_are_those_of_the_sockets(rank: int) -> None:
    model = network()
    count = sum(parameter.numel() for parameter in model.parameters())
    ours = replica(model)
    state = qc.compress_gradients(ours)
    train(ours, rank, range(2))  # by then the buckets are final
    before, written = state.sent, bytes_written()
    train(ours, rank, range(2, 4))
    sent = state.sent - before
    assert 2 * count < sent < 2 * 4 * count / 3  # float32 takes 2 * 4; small buckets are padded to blocks
    if written is not None:
        headers = (bytes_written() or 0) - written - sent
        assert 0 <= headers < 0.1 * sent, headers


def bytes_written() -> int | None:
    """What this process has written so far, to sockets and files, as the kernel counts it."""
    if not IO.exists():
        return None
    return int(next(line for line in IO.read_text().splitlines() if line.startswith("wchar")).split()[1])


def an_infinity_is_seen_by_all_and_does_not_stay(rank: int) -> None:
    model = network()
    ours = replica(model)
    state = qc.compress_gradients(ours, block=32)
    train(ours, rank, range(2))
    start, held = copy.deepcopy(model.state_dict()), state.state_dict()["errors"]
    train(ours, rank, range(2, 3), scale=torch.inf if rank == 1 else 1.0)
    assert bool(flat(model).isnan().any())
    assert all(bool(error.isfinite().all()) for error in state.errors.values())
    if rank == 1:  # where nothing was finite, and nothing changes
        assert all(torch.equal(error, held[name]) for name, error in state.errors.items())
    model.load_state_dict(start)
    train(ours, rank, range(3, 5))
    assert bool(flat(model).isfinite().all()) and same_everywhere(flat(model))


def a_checkpoint_goes_on_to_the_same_bits(rank: int, folder: Path) -> None:
    model, other = network(), network()
    ours, again = replica(model), replica(other)
    state, loaded = qc.compress_gradients(ours), qc.compress_gradients(again)
    train(again, rank, range(2))  # DDP has cut the buckets of both when they go on
    train(ours, rank, range(3))
    torch.save({"model": model.state_dict(), "errors": state.state_dict()}, folder / f"{rank}.pt")
    train(ours, rank, range(3, 6))
    saved = torch.load(folder / f"{rank}.pt", weights_only=True)
    other.load_state_dict(saved["model"])
    loaded.load_state_dict(saved["errors"])
    train(again, rank, range(3, 6))
    assert torch.equal(flat(model), flat(other))
    refused(loaded, {**saved["errors"], "rank": 1 - rank}, "without errors")
    refused(loaded, {**saved["errors"], "errors": {"0.weight": torch.zeros(3)}}, '"0.weight"')
    refused(loaded, {**saved["errors"], "errors": {"other": torch.zeros(3)}}, "the model has none")


def refused(state: Compression, saved: dict[str, Any], words: str) -> None:
    try:
        state.load_state_dict(saved)
    except InputError as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"loaded what should be refused: {words}")


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    replicas_stay_equal_and_near_to_float(rank)
    options_of_ddp_change_nothing(rank)
    without_feedback_nothing_is_kept(rank)
    what_is_missing_is_what_is_held(rank)
    bytes_that_were_sent_are_those_of_the_sockets(rank)
    an_infinity_is_seen_by_all_and_does_not_stay(rank)
    a_checkpoint_goes_on_to_the_same_bits(rank, folder)
    dist.destroy_process_group()
    print("held")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
