"""Rows of floats: vectors of any length, what all lanes of one make together, and codes of them.

A row that does not fill whole vectors ends in a shorter one: nothing beyond a row is read or written.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.extremes import Extremes
from qcompiler.backends.tvm.kernels.rounding import Rounding, rounder
from qcompiler.backends.tvm.kernels.strips import bounded, store_codes
from qcompiler.backends.tvm.plane import Plane

TOGETHER = 4  # vectors at a time: as many sums hide the latency of an addition, and narrow to one register


def parts(k: Builder, extent: int, lanes: int) -> Iterator[tuple[Any, list[int]]]:
    """Begin of every part of a row and the lengths of its vectors: four whole ones in a loop, the rest."""
    turns, rest = divmod(extent, TOGETHER * lanes)
    if turns:
        with k.loop(turns) as i:
            yield i * (TOGETHER * lanes), [lanes] * TOGETHER
    if rest:
        whole, left = divmod(rest, lanes)
        yield tirx.const(turns * TOGETHER * lanes, "int32"), [lanes] * whole + [left] * (left > 0)


def vectors(k: Builder, buffer: Any, at: Any, lengths: list[int], lanes: int) -> list[Any]:
    """A part of a row; the last vector is filled with zeros."""
    return [
        widened(k.load(buffer, at + j * lanes, length), length, lanes) for j, length in enumerate(lengths)
    ]


def widened(value: Any, length: int, lanes: int) -> Any:
    """`length` floats, and zeros behind them."""
    if length == lanes:
        return value
    zeros = splat(0.0, "float32", lanes)
    return tirx.Shuffle([value, zeros], [*range(length), *[length] * (lanes - length)])


def store_floats(k: Builder, buffer: Any, at: Any, values: list[Any], lengths: list[int], lanes: int) -> None:
    for j, (value, length) in enumerate(zip(values, lengths, strict=True)):
        kept = value if length == lanes else tirx.Shuffle([value], list(range(length)))
        k.store(buffer, at + j * lanes, kept, length)


def store_steps(
    k: Builder, isa: Isa, buffer: Any, at: Any, steps: list[Any], zero_point: Any, count: int
) -> None:
    """sat(rne(steps) + z) of up to four vectors of x / s, the first `count` of them."""
    zero = splat(zero_point, "int32", isa.lanes)
    rounded = [isa.nearest(bounded(k.bind(step), isa.lanes)) + zero for step in steps]
    store_codes(k, isa, buffer, at, rounded, count)


class Results(NamedTuple):
    """What writes a part of a row (row, at, values, lengths) wherever it is wanted, and what ends a row."""

    part: Callable[[Any, Any, list[Any], list[int]], None]
    end: Callable[[Any], None]


def results(
    k: Builder, isa: Isa, floats: Plane | None, codes: Plane | None, block: int = 0, ranged: bool = False
) -> Results:
    """([s, z,] [y,] [q,] [codes of y by block, their scales, their sums,] [extremes of rows]) become
    arguments here.
    """
    scale = None if codes is None else k.argument("scale", "float32", 1)
    zero = None if codes is None else k.argument("zero", "int32", 1)
    y = None if floats is None else k.argument("y", "float32", floats.size)
    q = None if codes is None else k.argument("q", "uint8", codes.size)
    step = None if scale is None else k.keep(
        splat(k.load(scale, 0), "float32", isa.lanes), "float32", isa.lanes
    )  # fmt: skip
    round_row = rounder(k, isa, Rounding(x=floats, block=block), y) if floats is not None and block else None
    seen = Extremes(k, isa, rows(floats)) if floats is not None and ranged else None

    def part(row: Any, at: Any, values: list[Any], lengths: list[int]) -> None:
        values = [k.keep(value, "float32", isa.lanes) for value in values]
        if floats is not None:
            store_floats(k, y, row * floats.pitch + at, values, lengths, isa.lanes)
        if seen is not None:
            seen.see(values)
        if codes is not None:
            steps = [value / step for value in values]
            store_steps(k, isa, q, row * codes.pitch + at, steps, k.load(zero, 0), sum(lengths))

    def end(row: Any) -> None:
        if round_row is not None:
            round_row(row)
        if seen is not None:
            seen.end(row)

    return Results(part, end)


def rows(plane: Plane) -> int:
    return plane.images * plane.height * plane.width
