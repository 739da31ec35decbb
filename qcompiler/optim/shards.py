"""Parameters of FSDP2 are DTensors: the part that this process holds, and states laid out beside it."""

from math import prod

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from qcompiler.errors import InputError
from qcompiler.optim.codes import blocks


def local(x: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, unless it is sharded."""
    return x.to_local() if isinstance(x, DTensor) else x


def gradient(parameter: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the part of the parameter that this process holds."""
    if grad.layout != torch.strided:
        raise InputError(
            f"a gradient with layout {grad.layout}",
            why="a block of codes holds neighbours of a dense tensor",
            fix="build the embedding with sparse=False",
        )
    if isinstance(parameter, DTensor) and isinstance(grad, DTensor):
        grad = grad.redistribute(placements=parameter.placements)
    return local(grad)


def beside(parameter: Tensor, part: Tensor) -> Tensor:
    """A state with the parameter's shape; sharded as the parameter is."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip


def scales_beside(parameter: Tensor, absmax: Tensor) -> Tensor:
    """The scales of the blocks of a state.

    (blocks,)                                      of a whole parameter
    (processes or 1 per mesh axis ..., blocks)     of a sharded one: each process its own row

    Blocks begin with a process's shard, so scales belong to a number of processes. As rows of one DTensor
    they are saved by every process and not by the first alone, and a checkpoint of another number of
    processes does not fit, where it would otherwise be read wrongly.
    """
    if not isinstance(parameter, DTensor):
        return absmax
    mesh, largest, rows = parameter.device_mesh, list(parameter.shape), []
    for axis, placement in enumerate(parameter.placements):
        dim = getattr(placement, "dim", None)  # a shard of either kind has one
        rows.append(1 if dim is None else mesh.size(axis))
        if dim is not None:
            largest[dim] = -(-largest[dim] // mesh.size(axis))
    width = blocks(prod(largest))
    row = torch.nn.functional.pad(absmax, (0, width - absmax.numel()))
    shape = torch.Size([*rows, width])
    return DTensor.from_local(
        row.view(*(1 for _ in rows), width), mesh,
        [Replicate() if count == 1 else Shard(axis) for axis, count in enumerate(rows)],
        run_check=False, shape=shape, stride=torch.empty(shape, device="meta").stride(),
    )  # fmt: skip


def first_element(parameter: Tensor) -> int:
    """Where this process's part begins in the row-major order of the whole."""
    if not isinstance(parameter, DTensor):
        return 0
    if any(type(placement) is not Replicate and placement != Shard(0) for placement in parameter.placements):
        raise InputError(
            f"stochastic rounding of a parameter placed {parameter.placements}",
            why="only a shard along the first dimension is one piece of the whole",
            fix="shard along dimension 0, or give stochastic_rounding=False",
        )
    _, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return offset[0] * prod(parameter.shape[1:]) if offset else 0
