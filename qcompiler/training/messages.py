"""Numbers as a message of bytes: codes of 8 bits in blocks, and behind them the scale of every block."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qcompiler.errors import RecipeError
from qcompiler.numerics import FP8, amax_scale, cast_fp8
from qcompiler.numerics.fp8 import largest

SCALE = torch.float32
ALIGNED = 4  # bytes: scales behind so many codes can be read where they lie


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Numbers of one byte: torch's type, the largest, and the nearest to a ratio within +-largest."""

    dtype: torch.dtype
    largest: float
    nearest: Callable[[Tensor], Tensor]


def integers(ratio: Tensor) -> Tensor:
    """Half to even; the clamp is for a quotient that rounds up."""
    return ratio.round_().clamp_(-127, 127).to(torch.int8)


CODES: Mapping[str, Codes] = {
    "int8": Codes(dtype=torch.int8, largest=127, nearest=integers),
    **{
        name: Codes(dtype=dtype, largest=largest(name), nearest=partial(cast_fp8, format=name))
        for name, dtype in FP8.items()
    },
}


@dataclass(frozen=True, kw_only=True)
class Messages:
    """Messages of one format: `block` elements share a scale.

    s = max |x| of the block / largest        q = nearest(x / s)        x ~ q s

    int8: |x - q s| <= s / 2 = max |x| / 254. E4M3 and E5M2: at most 1/16 and 1/8 of |x|, and down to s times
    half of the format's least number. An infinity or a NaN makes the scale NaN, and so the whole block: who
    looks for an overflow finds it.
    """

    format: str = "int8"
    block: int = 256

    def __post_init__(self) -> None:
        if self.format not in CODES:
            raise RecipeError(f'no gradients in "{self.format}"', fix=f"use one of {', '.join(CODES)}")
        if self.block < ALIGNED or self.block % ALIGNED:
            raise RecipeError(
                f"blocks of {self.block} elements",
                why="their scales lie behind the codes and have four bytes",
                fix=f"use a multiple of {ALIGNED}, such as 256",
            )

    def size(self, count: int) -> int:
        """The bytes of a message of `count` elements, which are whole blocks."""
        return count + count // self.block * SCALE.itemsize

    def encode(self, x: Tensor) -> Tensor:
        """float32 [k, n], n a multiple of the block  -->  k messages, uint8 [k, size(n)]."""
        codes, (rows, count) = CODES[self.format], x.shape
        blocks = x.reshape(rows * count // self.block, self.block)
        scale = amax_scale(blocks.abs().amax(1), codes.largest)
        found = codes.nearest(blocks / scale.unsqueeze(1))
        messages = torch.empty(rows, self.size(count), dtype=torch.uint8, device=x.device)
        messages[:, :count] = found.view(torch.uint8).view(rows, count)
        messages[:, count:].view(SCALE).copy_(scale.view(rows, count // self.block))
        return messages

    def decode(self, messages: Tensor) -> Tensor:
        """uint8 [k, size(n)]  -->  float32 [k, n]"""
        rows, size = messages.shape
        count = size * self.block // (self.block + SCALE.itemsize)
        codes = messages[:, :count].view(CODES[self.format].dtype).to(SCALE)
        scale = messages[:, count:].view(SCALE)
        blocks = codes.view(*scale.shape, self.block)
        return blocks.mul_(scale.unsqueeze(2)).view(rows, count)
