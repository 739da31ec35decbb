"""Indices of max-pooling in few bits: which tap of its window each position took.

i = stride p + dilation k - padding        on each axis, for position p and tap k
index = i in the map, row by row           up to 64 bits; k, one of 9 for windows of 3 x 3, takes 4
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from qcompiler.numerics.packing import WIDE, join, split

TOGETHER = 1 << 17  # positions: temporaries stay in a cache


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """Windows over a map of `size`, one for each of `positions`; one number for each axis."""

    size: tuple[int, ...]
    positions: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def bits(self) -> int | None:
        """Of a tap; None where no byte holds one, or where a window has none in the map.

        That comes with dilation alone. The index that torch then gives is of no use to anybody, and need not
        be one of the taps.
        """
        if any(seen == 0 for axis in range(len(self.size)) for seen in self.seen(axis)):
            return None
        return min((bits for bits in WIDE if prod(self.window) <= 2**bits), default=None)

    def seen(self, axis: int) -> list[int]:
        """How many taps of each position lie in the map, on an axis."""
        taps = range(0, self.window[axis] * self.dilation[axis], self.dilation[axis])
        starts = range(
            -self.padding[axis],
            self.positions[axis] * self.stride[axis] - self.padding[axis],
            self.stride[axis],
        )
        return [sum(0 <= start + tap < self.size[axis] for tap in taps) for start in starts]

    def starts(self, axis: int, device: torch.device) -> Tensor:
        """Where the first tap of each position lies on an axis, below 0 in the padding; [..., n, ...]."""
        first = torch.arange(self.positions[axis], device=device) * self.stride[axis] - self.padding[axis]
        return self.outer(first, axis)

    def steps(self, axis: int, device: torch.device) -> Tensor:
        """How far each tap lies from the first, on an axis; [..., k, ...]."""
        return self.outer(torch.arange(self.window[axis], device=device) * self.dilation[axis], axis)

    def outer(self, values: Tensor, axis: int) -> Tensor:
        return values.view([-1 if each == axis else 1 for each in range(len(self.size))])

    def strides(self) -> list[int]:
        """How far apart neighbours on each axis are in the map."""
        return [prod(self.size[axis + 1 :]) for axis in range(len(self.size))]


def pack_taps(index: Tensor, pooling: Pooling) -> Tensor:
    """The taps of indices int64 [..., *positions] in `bits` each, row by row, low bits first; uint8.

    Beside the result this takes a byte for each index, and a copy of indices that are not contiguous.
    """
    bits, device = pooling.bits, index.device
    assert bits is not None
    fields = torch.zeros(-(-index.numel() * bits // 8) * 8 // bits, dtype=torch.uint8, device=device)
    axes = [(axis, along, pooling.starts(axis, device)) for axis, along in enumerate(pooling.strides())]
    maps = index.reshape(-1, *pooling.positions)
    for part, elements in pieces(maps):
        rest, tap = maps[part], torch.zeros((), dtype=torch.int64, device=device)
        for axis, along, starts in axes:
            at = rest.div(along, rounding_mode="floor")
            rest = rest - at * along
            tap = tap * pooling.window[axis] + (at - starts).div(
                pooling.dilation[axis], rounding_mode="floor"
            )
        fields[elements] = tap.flatten().to(torch.uint8)
    return join(fields, bits)


def unpack_taps(packed: Tensor, pooling: Pooling, shape: Sequence[int]) -> Tensor:
    """The indices [..., *positions] whose taps `pack_taps` packed: those of the first taps, and the steps."""
    bits, device = pooling.bits, packed.device
    assert bits is not None
    first = torch.zeros((), dtype=torch.int64, device=device)
    step = torch.zeros((), dtype=torch.int64, device=device)
    for axis, along in enumerate(pooling.strides()):
        first = first + pooling.starts(axis, device) * along
        step = step + pooling.steps(axis, device) * along
    fields, step = split(packed, bits), step.flatten()
    index = torch.empty(tuple(shape), dtype=torch.int64, device=device)
    maps = index.view(-1, *pooling.positions)
    for part, elements in pieces(maps):
        maps[part] = step[fields[elements].to(torch.int64)].view(-1, *pooling.positions) + first
    return index


def pieces(maps: Tensor) -> Iterator[tuple[slice, slice]]:
    """(maps, their elements), as many at a time as stay in a cache."""
    size = maps[:1].numel()
    few = max(TOGETHER // max(size, 1), 1)
    for start in range(0, len(maps), few):
        stop = min(start + few, len(maps))
        yield slice(start, stop), slice(start * size, stop * size)
