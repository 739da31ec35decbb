"""Numbers as one byte each: the nearest of 256 values, times the largest magnitude of their block.

Dettmers et al., "8-bit optimizers via block-wise quantization", arXiv 2110.02861, sections 1.2 to 2.2.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qcompiler.errors import RecipeError

BLOCK = 256
"""Elements that share one scale."""

_CELL_BITS = 15  # lower bits of a float32 that do not choose its cell; eight of the fraction do


@dataclass(frozen=True, kw_only=True)
class CodeMap:
    """The 256 values that codes stand for: rising, within [-1, 1], 0 and 1 among them.

    encode(x) = (argmin_c |x / a - values[c]|, a)      a = max |x| of the block, one float32 per 256 elements
    decode(c, a) = values[c] * a

    0 and a positive a come back exactly. Where `keeps_positive`, a positive number never becomes 0 but the
    least positive value: a second moment that became 0 would turn a step m / (sqrt(v) + eps) into m / eps.
    A block that holds a NaN or an infinity decodes to NaN and infinities in every place, so that whoever
    looks for overflow still finds it.
    """

    values: tuple[float, ...]
    keeps_positive: bool = False

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.values, self.values[1:], strict=False))
        if len(self.values) != 256 or not rising or self.values[-1] != 1.0 or self.values[0] < -1.0:
            raise RecipeError(
                f"{len(self.values)} values are no map of 8-bit codes",
                fix="give 256 rising values from -1 or 0 up to 1",
            )
        if 0.0 not in self.values:
            raise RecipeError("a map of 8-bit codes without 0", why="a state that is zero must stay zero")

    @property
    def zero(self) -> int:
        """The code of 0."""
        return self.values.index(0.0)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (n,) uint8 and block maxima (ceil(n / 256),) float32 of flat numbers (n,)."""
        rows = _rows(x.to(torch.promote_types(x.dtype, torch.float32)))
        absmax = rows.abs().amax(1)
        # Where all are zero any divisor does.
        scaled = rows / torch.where(absmax == 0, 1.0, absmax).unsqueeze(1)
        return self.nearest(scaled.to(torch.float32).view(-1)[: x.numel()]), absmax.to(torch.float32)

    def nearest(self, x: Tensor) -> Tensor:
        """The codes (n,) of flat numbers within [-1, 1]: how many midpoints of neighbouring values are below.

        Numbers with the same 17 upper bits lie between the same two midpoints or around one. So a table says
        how many are below the least of them, and one comparison the rest; a search takes ten times as long.
        """
        tables = _tables(self, x.device)
        cell = (x.view(torch.int32) >> _CELL_BITS) & (2 ** (32 - _CELL_BITS) - 1)
        below = tables.below.index_select(0, cell)
        above = x > tables.midpoints.index_select(0, below)
        return below.to(torch.uint8).add_(above)

    def decode(self, codes: Tensor, absmax: Tensor) -> Tensor:
        """The float32 numbers (n,) of flat codes (n,)."""
        values = _tables(self, codes.device).values
        rows = _rows(values.index_select(0, codes.to(torch.int32)))
        return rows.mul_(absmax.unsqueeze(1)).view(-1)[: codes.numel()]


def dynamic_values(*, signed: bool) -> tuple[float, ...]:
    """Seven decades, each with twice as many steps as the one below it; 0 and 1 besides (figure 2).

    decade i = 0..6, from 10^(i-7) to 10^(i-6), is cut into 2^i equal parts if signed and into 2^(i+1) if not;
    a code is the middle of a part. 2 (1 + 2 + ... + 64) + 2 = 256 either way.

    So the relative error only doubles from one decade to the next lower one.
    """
    positive = [10.0 ** (decade - 6) * middle
                for decade in range(7)
                for middle in _middles(2 ** (decade + (not signed)))]  # fmt: skip
    negative = [-value for value in positive] if signed else []
    return tuple(sorted([*negative, 0.0, *positive, 1.0]))


def blocks(count: int) -> int:
    """How many blocks `count` elements take."""
    return -(-count // BLOCK)


def _middles(parts: int) -> list[float]:
    borders = np.linspace(0.1, 1.0, parts + 1)
    return [float(middle) for middle in (borders[:-1] + borders[1:]) / 2]


def _rows(flat: Tensor) -> Tensor:
    """(n,) -> (ceil(n / 256), 256); zeros fill the last row, and change no maximum."""
    missing = -flat.numel() % BLOCK
    return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(-1, BLOCK)


class _Tables(NamedTuple):
    """A map as tensors of one device."""

    values: Tensor  # (256,) float32
    midpoints: Tensor  # (256,) float32, the last one infinite
    below: Tensor  # (2^17,) int32: how many midpoints are below every number of a cell


@lru_cache(maxsize=64)
def _tables(codes: CodeMap, device: torch.device) -> _Tables:
    values = np.array(codes.values, dtype=np.float32)
    midpoints = ((values[:-1].astype(np.float64) + values[1:]) / 2).astype(np.float32)
    if codes.keeps_positive:
        midpoints[codes.zero] = 0
    cells = np.arange(2 ** (32 - _CELL_BITS), dtype=np.uint32) << _CELL_BITS
    ends = np.stack([cells, cells | (2**_CELL_BITS - 1)]).view(np.float32)
    ends = np.where(np.isnan(ends), np.copysign(1, ends), ends).clip(-1, 1)
    least, greatest = np.searchsorted(midpoints, np.sort(ends, axis=0))
    if (greatest > least + 1).any():
        raise RecipeError("values of a map of 8-bit codes are too close", fix="keep them 0.004 apart or more")
    midpoints = np.append(midpoints, np.float32(np.inf))
    tables = (values, midpoints, least.astype(np.int32))
    return _Tables(*(torch.from_numpy(table).to(device) for table in tables))


SIGNED = CodeMap(values=dynamic_values(signed=True))
"""For first moments and momentum."""

UNSIGNED = CodeMap(values=dynamic_values(signed=False), keeps_positive=True)
"""For second moments; one bit more for the fraction."""
