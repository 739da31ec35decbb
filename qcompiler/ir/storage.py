"""Operators that store a value in few bits between forward and backward: `torch.ops.qcompiler.store` ...

    store   x --> (packed, bounds)      groups of 256 in row-major order, stochastic rounding
    recall  (packed, bounds) --> x      in the shape, stride and type that it had
    store_mask, recall_mask             one bit each, exact

`noise_key` has no arguments and no kernel: it stands in a graph for the key (seed, step, rank) of the draws,
and becomes an input before the graph is lowered.
"""

from math import prod

import torch
from torch import Tensor

from qcompiler.numerics.groupwise import (
    GROUP,
    compress,
    compress_mask,
    compressed_bytes,
    decompress,
    decompress_mask,
)
from qcompiler.numerics.philox import Purpose, uniform


@torch.library.custom_op("qcompiler::noise_key", mutates_args=())
def noise_key(device: torch.device) -> Tensor:
    """Stands for the key (seed, step, rank), int64 [3]; replaced by an input before a graph runs."""
    raise RuntimeError("noise_key stands for an input; it was not replaced by one")


@noise_key.register_fake
def _(device: torch.device) -> Tensor:
    return torch.empty(3, dtype=torch.int64, device=device)


@torch.library.custom_op("qcompiler::store", mutates_args=())
def store(x: Tensor, key: Tensor, tensor: int, bits: int) -> tuple[Tensor, Tensor]:
    """uint8 codes, `bits` each, and (minimum, scale) of each group in bfloat16 [groups, 2]."""

    def draws(offset: int, count: int) -> Tensor:
        return uniform(count, key, tensor=tensor, purpose=Purpose.SAVED_ACTIVATION, offset=offset)

    return compress(x, bits, draws)


@store.register_fake
def _(x: Tensor, key: Tensor, tensor: int, bits: int) -> tuple[Tensor, Tensor]:
    groups = (x.numel() + GROUP - 1) // GROUP
    return (
        x.new_empty(groups * GROUP * bits // 8, dtype=torch.uint8),
        x.new_empty((groups, 2), dtype=torch.bfloat16),
    )


@torch.library.custom_op("qcompiler::recall", mutates_args=())
def recall(
    packed: Tensor, bounds: Tensor, bits: int, shape: list[int], stride: list[int], dtype: torch.dtype
) -> Tensor:
    """What `store` stored, as it was laid out."""
    return laid_out(decompress(packed, bounds, bits, prod(shape), dtype=dtype), shape, stride)


@recall.register_fake
def _(
    packed: Tensor, bounds: Tensor, bits: int, shape: list[int], stride: list[int], dtype: torch.dtype
) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device=packed.device)


@torch.library.custom_op("qcompiler::store_mask", mutates_args=())
def store_mask(x: Tensor) -> Tensor:
    """One bit per element of a tensor of 0 and 1, eight to a byte."""
    return compress_mask(x)


@store_mask.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8)


@torch.library.custom_op("qcompiler::recall_mask", mutates_args=())
def recall_mask(packed: Tensor, shape: list[int], stride: list[int], dtype: torch.dtype) -> Tensor:
    """What `store_mask` stored, as it was laid out."""
    return laid_out(decompress_mask(packed, prod(shape)).to(dtype), shape, stride)


@recall_mask.register_fake
def _(packed: Tensor, shape: list[int], stride: list[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device=packed.device)


@torch.library.custom_op("qcompiler::narrow", mutates_args=())
def narrow(x: Tensor, bits: int) -> Tensor:
    """Integers in 16 or 32 bits, which hold all of them; the strides stay."""
    return x.to({16: torch.int16, 32: torch.int32}[bits], copy=True)


@narrow.register_fake
def _(x: Tensor, bits: int) -> Tensor:
    return torch.empty_like(x, dtype={16: torch.int16, 32: torch.int32}[bits])


@torch.library.custom_op("qcompiler::widen", mutates_args=())
def widen(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What `narrow` narrowed."""
    return x.to(dtype, copy=True)


@widen.register_fake
def _(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


def stored_bytes(count: int, dtype: torch.dtype, bits: int) -> int:
    """Bytes of `count` elements in `bits` bits, bounds included where they are floating-point numbers."""
    return compressed_bytes(count, bits) if dtype.is_floating_point else -(-count * bits // 8)


def laid_out(flat: Tensor, shape: list[int], stride: list[int]) -> Tensor:
    """Elements in row-major order  -->  their shape and stride; a copy where that is another order."""
    x = flat.view(shape)
    if x.stride() == tuple(stride):
        return x
    return torch.empty_strided(shape, stride, dtype=x.dtype, device=x.device).copy_(x)
