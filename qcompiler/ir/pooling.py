"""Operators that keep what a max-pool found in few bits between forward and backward, exactly.

store_taps    index --> packed      which tap of its window each is
recall_taps   packed --> index
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.ir.storage import laid_out
from qcompiler.numerics.pooling import Pooling, pack_taps, unpack_taps


@torch.library.custom_op("qcompiler::store_taps", mutates_args=())
def store_taps(
    index: Tensor,
    bits: int,
    size: list[int],
    window: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Indices [..., *positions] of a max-pool over maps of `size`  -->  uint8 codes, `bits` each; exact."""
    return pack_taps(index, pooling(index.shape, size, window, stride, padding, dilation))


@store_taps.register_fake
def _(
    index: Tensor,
    bits: int,
    size: list[int],
    window: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    return index.new_empty(-(-index.numel() * bits // 8), dtype=torch.uint8)


@torch.library.custom_op("qcompiler::recall_taps", mutates_args=())
def recall_taps(
    packed: Tensor,
    size: list[int],
    window: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    shape: list[int],
    layout: list[int],
) -> Tensor:
    """What `store_taps` stored: int64 of a shape, with the strides of `layout`."""
    index = unpack_taps(packed, pooling(shape, size, window, stride, padding, dilation), shape)
    return laid_out(index, shape, layout)


@recall_taps.register_fake
def _(
    packed: Tensor,
    size: list[int],
    window: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    shape: list[int],
    layout: list[int],
) -> Tensor:
    return torch.empty_strided(shape, layout, dtype=torch.int64, device=packed.device)


def pooling(shape: Sequence[int], size: list[int], *geometry: list[int]) -> Pooling:
    """The pooling that gives indices of this shape."""
    window, stride, padding, dilation = map(tuple, geometry)
    return Pooling(
        size=tuple(size), positions=tuple(shape[-len(size) :]), window=window, stride=stride, padding=padding,
        dilation=dilation,
    )  # fmt: skip
