"""One of two processes that train in few bits: `distributed.py RANK FOLDER`; fails where a claim does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import qcompiler as qc

STEPS = 3
WIDTH = 64


class Net(nn.Module):
    """Two layers with a GELU between, on rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(x)))
        return y


def network() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(step: int, rank: int) -> Tensor:
    return torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(10 * step + rank))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.autograd.backward(model(x).square().mean())
    return [whole(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x.clone()


def by_one_process(settings: dict[str, Any]) -> list[list[Tensor]]:
    """The mean of both processes' gradients at each step, by this one: each draws as the other would."""
    found = []
    halves = []
    for rank in range(2):
        torch._dynamo.reset()
        with patch("qcompiler.training.noise.rank", lambda rank=rank: rank):
            model = qc.compile_training(network(), verify=False, guard=False, **settings)
            halves.append([gradients(model, batch(step, rank)) for step in range(STEPS)])
    for ours, theirs in zip(*halves, strict=True):
        found.append([(a + b) / 2 for a, b in zip(ours, theirs, strict=True)])
    return found


def replicas(rank: int, settings: dict[str, Any]) -> list[list[Tensor]]:
    torch._dynamo.reset()
    model = DistributedDataParallel(qc.compile_training(network(), verify=False, guard=False, **settings))
    return [[x.clone() for x in gradients(model, batch(step, rank))] for step in range(STEPS)]


def shards(rank: int, settings: dict[str, Any]) -> list[list[Tensor]]:
    torch._dynamo.reset()
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    qc.compile_training(model, verify=False, guard=False, **settings)
    return [gradients(model, batch(step, rank)) for step in range(STEPS)]


def sharded_layers_are_near(rank: int) -> None:
    """Hooks of inner modules break the graph: other values cross, with other draws of the same mean."""
    torch._dynamo.reset()
    model = network()
    for part in (model.up, model.down, model):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    qc.compile_training(model, memory="act8", verify=False)
    found = torch.cat([x.flatten() for x in gradients(model, batch(0, rank))])
    alone = network()
    exact = [torch.cat([x.flatten() for x in gradients(alone, batch(0, each))]) for each in range(2)]
    expected = (exact[0] + exact[1]) / 2
    assert (found - expected).norm() < 0.02 * expected.norm()


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    for settings in (
        {"memory": "act4"},
        {"recipe": "int8-stochastic", "memory": "act8"},
        {"recipe": "fp8-delayed", "memory": "keep"},
    ):
        expected = by_one_process(settings)
        for train in (replicas, shards):
            for mine, theirs in zip(train(rank, settings), expected, strict=True):
                assert all(map(torch.equal, mine, theirs)), (train.__name__, settings)
    sharded_layers_are_near(rank)
    dist.destroy_process_group()
    print("held")


if __name__ == "__main__":
    main()
