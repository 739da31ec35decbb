"""One of two processes of DDP and FSDP2: `sharded.py RANK FOLDER`. Fails where a claim does not hold."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from qcompiler.errors import InputError
from qcompiler.optim import AdamW8bit, SGD8bit


def network(rows: int, dtype: torch.dtype) -> nn.Sequential:
    """The last weight has one row: a process holds nothing of it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, rows), nn.ReLU(), nn.Linear(rows, 1)).to(dtype)


def train(model: nn.Module, optimizer: Optimizer, steps: range, data: int = 0) -> None:
    for number in steps:
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1000 * data + number))
        optimizer.zero_grad()
        model(x.to(next(model.parameters()).dtype)).float().square().mean().backward()
        optimizer.step()


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(whole(x), whole(y)) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def two_processes_are_one(mesh: Any) -> None:
    """Both see the same batch, so the mean of two gradients is each. Shards of 64 x 64 are whole blocks."""
    for dtype in (torch.float32, torch.bfloat16):
        for make in (AdamW8bit, lambda of: SGD8bit(of, lr=0.1, momentum=0.9)):
            one, two = network(128, dtype), network(128, dtype)
            fully_shard(two, mesh=mesh)
            single, sharded = make(one.parameters()), make(two.parameters())
            train(one, single, range(4))
            train(two, sharded, range(4))
            assert equal(one, two), dtype
            name = next(iter(sharded.moments))
            (ours, *_), (theirs, *_) = two.parameters(), one.parameters()
            assert whole(sharded.state[ours][name]).dtype == torch.uint8
            assert torch.equal(whole(sharded.state[ours][name]), single.state[theirs][name])


def replicas_stay_equal(rank: int) -> None:
    """Each sees its own batch; DDP makes the gradients equal, and the rounding must not part the weights."""
    model = network(128, torch.bfloat16)
    replica = DistributedDataParallel(model)
    train(replica, AdamW8bit(replica.parameters()), range(4), data=rank)
    for parameter in model.parameters():
        of_first = parameter.detach().clone()
        dist.broadcast(of_first, src=0)
        assert torch.equal(parameter, of_first)


def a_checkpoint_goes_on_to_the_same_bits(mesh: Any, folder: Path) -> None:
    """127 rows: the shards differ in size, and are no whole blocks."""
    model, other = network(127, torch.bfloat16), network(127, torch.bfloat16)
    for one in (model, other):
        fully_shard(one, mesh=mesh)
    optimizer, again = AdamW8bit(model.parameters()), AdamW8bit(other.parameters())
    train(model, optimizer, range(3))
    weights = copy.deepcopy(model.state_dict())
    saved = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    state_dict_saver.save(saved, checkpoint_id=folder / "checkpoint")
    train(model, optimizer, range(3, 6))

    into = {"optimizer": get_optimizer_state_dict(other, again)}
    state_dict_loader.load(into, checkpoint_id=folder / "checkpoint")
    set_optimizer_state_dict(other, again, into["optimizer"])
    other.load_state_dict(weights)
    train(other, again, range(3, 6))
    assert equal(model, other)


def what_does_not_fit_is_refused(mesh: Any) -> None:
    one, two = network(128, torch.float32), network(128, torch.float32)
    fully_shard(two, mesh=mesh)
    single, sharded = AdamW8bit(one.parameters()), AdamW8bit(two.parameters())
    train(one, single, range(1))
    try:
        sharded.load_state_dict(single.state_dict())
    except InputError as error:
        assert "set_optimizer_state_dict" in str(error)
    else:
        raise AssertionError("a state of one process was loaded by two")

    columns = network(128, torch.bfloat16)
    fully_shard(columns, mesh=mesh, shard_placement_fn=lambda p: Shard(p.ndim - 1))
    try:
        train(columns, AdamW8bit(columns.parameters()), range(1))
    except InputError as error:
        assert "stochastic_rounding=False" in str(error)
    else:
        raise AssertionError("a shard that is no piece of the whole was rounded")
    train(columns, AdamW8bit(columns.parameters(), stochastic_rounding=False), range(1))


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    replicas_stay_equal(rank)
    two_processes_are_one(mesh)
    a_checkpoint_goes_on_to_the_same_bits(mesh, folder)
    what_does_not_fit_is_refused(mesh)
    dist.destroy_process_group()
    print("held")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
