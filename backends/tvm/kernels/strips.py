"""Bytes that lie side by side, as registers: as many whole ones as fit, then a half and a quarter of one."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa


class Strip(NamedTuple):
    """`turns` vectors of `width` codes, from `begin` on."""

    begin: int
    turns: int
    width: int


def strips(extent: int, widest: int, narrowest: int) -> Iterator[Strip]:
    """Cut an extent that is a multiple of the narrowest width; each width is half of the one before."""
    begin, width = 0, widest
    while width >= narrowest:
        count = (extent - begin) // width
        if count:
            yield Strip(begin, count, width)
        begin, width = begin + count * width, width // 2


def whole(extent: int, width: int) -> int:
    """The extent that whole vectors of a width cover."""
    return -(-extent // width) * width


def bounded(value: Any, lanes: int) -> Any:
    """min(value, 512), NaN for NaN: rounding turns what int32 does not hold into its lowest number."""
    limit = splat(512.0, "float32", lanes)  # beyond every code even with the lowest zero point
    return tirx.Select(value > limit, limit, value)


def store_codes(
    k: Builder, isa: Isa, buffer: Any, index: Any, rounded: list[Any], count: int | None = None
) -> None:
    """Up to four int32 vectors as saturated bytes side by side; of those only the first `count`, if given."""
    codes = k.bind(isa.narrow(rounded + rounded[-1:] * (4 - len(rounded))))
    count = len(rounded) * isa.lanes if count is None else count
    k.store(buffer, index, tirx.Shuffle([codes], list(isa.order[:count])), count)
