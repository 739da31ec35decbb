"""How many elements share one scale: the shape of the scales, and how they spread over the elements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from qcompiler.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class PerTensor:
    """One scale for all elements; scale shape ()."""

    def __str__(self) -> str:
        return "per-tensor"


@dataclass(frozen=True, kw_only=True)
class PerChannel:
    """One scale per index of one axis; scale shape (n,)."""

    axis: int

    def __str__(self) -> str:
        return f"per-channel(axis={self.axis})"


@dataclass(frozen=True, kw_only=True)
class PerGroup:
    """One scale per run of `size` elements along one axis; the last run may be short.

    (a, n, b) grouped along axis 1  -->  scale shape (a, ceil(n / size), b)

    A size of n is one scale per row ("per token").
    """

    axis: int
    size: int

    def __str__(self) -> str:
        return f"per-group(axis={self.axis}, size={self.size})"


@dataclass(frozen=True, kw_only=True)
class PerBlock:
    """One scale per block, one size for each axis; the last block along an axis may be short."""

    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"per-block({'x'.join(map(str, self.sizes))})"


Granularity: TypeAlias = PerTensor | PerChannel | PerGroup | PerBlock


def scale_shape(shape: Sequence[int], granularity: Granularity) -> tuple[int, ...]:
    """The shape of the scales of a tensor of that shape."""
    sizes = _block_sizes(shape, granularity)
    blocks = tuple(-(-n // size) for n, size in zip(shape, sizes, strict=True))
    match granularity:
        case PerTensor():
            return ()
        case PerChannel(axis=axis):
            return (blocks[axis],)
    return blocks


def spread(params: Tensor, shape: Sequence[int], granularity: Granularity) -> Tensor:
    """Parameters of shape `scale_shape(shape, granularity)`, one per element of `shape`.

    spread(p, shape)[i, j, ...] = p[i // size_0, j // size_1, ...]

    Where nothing has to be copied the result is a view: do not write to it.
    """
    wanted = scale_shape(shape, granularity)
    if tuple(params.shape) != wanted:
        raise RecipeError(
            f"parameters of shape {tuple(params.shape)} do not fit a tensor of shape {tuple(shape)}",
            why=f"{granularity} needs shape {wanted}",
        )
    sizes = _block_sizes(shape, granularity)
    result = params.reshape([-(-n // size) for n, size in zip(shape, sizes, strict=True)])
    for axis, (n, size) in enumerate(zip(shape, sizes, strict=True)):
        if 1 < size < n:
            result = result.repeat_interleave(size, axis).narrow(axis, 0, n)
    return result.expand(tuple(shape))


def reduce_range(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """The smallest and the largest element under each scale, of shape `scale_shape(x.shape, granularity)`."""
    if x.numel() == 0:
        raise RecipeError(f"a tensor of shape {tuple(x.shape)} has no range", why="it is empty")
    wanted = scale_shape(x.shape, granularity)
    if wanted == ():
        lo, hi = torch.aminmax(x)
        return lo, hi
    lo, hi = x, x
    for axis, size in enumerate(_block_sizes(x.shape, granularity)):
        lo, hi = _reduce_axis(lo, axis, size, torch.amin), _reduce_axis(hi, axis, size, torch.amax)
    return lo.reshape(wanted), hi.reshape(wanted)


def reduce_amax(x: Tensor, granularity: Granularity) -> Tensor:
    """The largest magnitude under each scale, of shape `scale_shape(x.shape, granularity)`; NaN stays."""
    lo, hi = reduce_range(x, granularity)
    return torch.maximum(-lo, hi)


def _reduce_axis(x: Tensor, axis: int, size: int, reduce: Callable[..., Tensor]) -> Tensor:
    """(.., n, ..)  -->  (.., ceil(n / size), ..)."""
    n = x.shape[axis]
    if size == 1:
        return x
    whole = n - n % size
    parts = (
        [reduce(x.narrow(axis, 0, whole).reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis + 1)]
        if whole
        else []
    )
    if whole < n:
        parts.append(reduce(x.narrow(axis, whole, n - whole), axis, keepdim=True))
    return torch.cat(parts, axis)


def _block_sizes(shape: Sequence[int], granularity: Granularity) -> tuple[int, ...]:
    """The one normal form of all granularities: a block size for each axis, at least 1."""
    rank = len(shape)
    whole = [max(n, 1) for n in shape]
    match granularity:
        case PerTensor():
            return tuple(whole)
        case PerChannel(axis=axis) if -rank <= axis < rank:
            whole[axis] = 1
            return tuple(whole)
        case PerGroup(axis=axis, size=size) if -rank <= axis < rank and size >= 1:
            return tuple(size if index == axis % rank else 1 for index in range(rank))
        case PerBlock(sizes=sizes) if len(sizes) == rank and min(sizes, default=1) >= 1:
            return sizes
    raise RecipeError(
        f"{granularity} does not fit a tensor of shape {tuple(shape)}",
        fix=f"use an axis within its {rank} axes, sizes of at least 1, and one block size for each axis",
    )
