"""What a max-pool says of the indices that it hands to backward."""

from collections.abc import Mapping, Sequence
from operator import getitem
from typing import Any

import torch
from torch.fx import Node

from qcompiler.numerics.pooling import Pooling

aten = torch.ops.aten

AXES: Mapping[Any, int] = {
    aten.max_pool2d_with_indices.default: 2,
    aten.max_pool3d_with_indices.default: 3,
}


def index_bits(node: Node) -> int | None:
    """The fewest bits that hold every index which a pool found, exactly; None for what is no such index.

    Where a tap of the window has no byte, 16 or 32 bits hold 0 .. product of the map's lengths - 1.
    """
    pooling = pooling_of(node)
    if pooling is None:
        return None
    size = torch.Size(pooling.size).numel()
    return pooling.bits or (16 if size <= 2**15 else 32 if size <= 2**31 else None)


def pooling_of(node: Node) -> Pooling | None:
    """The windows of the pool whose indices a value is."""
    if node.target is not getitem or node.args[1] != 1:
        return None
    pool: Any = node.args[0]
    axes = AXES.get(pool.target)
    if axes is None or pool.kwargs:
        return None
    # As ATen's schema has it: no stride is the window's own, and one number is that of every axis.
    maps, window, *rest = pool.args
    stride, padding, dilation = (rest + [[], 0, 1][len(rest) :])[:3]
    return Pooling(
        size=tuple(maps.meta["val"].shape[-axes:]), positions=tuple(node.meta["val"].shape[-axes:]),
        window=each(window, axes), stride=each(stride or window, axes), padding=each(padding, axes),
        dilation=each(dilation, axes),
    )  # fmt: skip


def each(numbers: int | Sequence[int], axes: int) -> tuple[int, ...]:
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    return tuple(numbers if len(numbers) == axes else numbers * axes)
