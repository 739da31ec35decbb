"""Kernels by element: sums, products, functions of one code as tables, and concatenation.

add     y = sat(rne(fma(a, r_a, fma(b, r_b, f))))         r = s / s_y, f = z_y - (r_a z_a + r_b z_b)
mul     y = sat(rne(((a - z_a) s_a) ((b - z_b) s_b) / s_y) + z_y)
table   y = t[x]                                          t[q] = Q_y(f(D_x(q))) for the 256 codes
concat  y[.., o : o + C] = t[x], one input after another
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.strips import bounded, store_codes, strips
from qcompiler.backends.tvm.plane import Plane, pitch_of

Place = Callable[[Plane], Any]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two planes and their result; the pitches are multiples of the lanes.

    A factor or summand has the shape of the result, or one image, line or pixel where that has several.
    """

    a: Plane
    b: Plane
    y: Plane


@dataclass(frozen=True, kw_only=True)
class Zeros:
    """Zero points of a product's factors and of the product."""

    a: int
    b: int
    y: int


def add(pair: Pair, isa: Isa, name: str) -> Any:
    """The function (a, b, [r_a, r_b, f], y)."""
    lanes = isa.lanes

    def total(a: Any, b: Any, numbers: list[Any]) -> Any:
        ratio_a, ratio_b, fixed = numbers
        both = tirx.op.fma(tirx.Cast(f"float32x{lanes}", b), ratio_b, fixed)
        return isa.nearest(bounded(tirx.op.fma(tirx.Cast(f"float32x{lanes}", a), ratio_a, both), lanes))

    return by_element(pair, isa, name, total)


def multiply(pair: Pair, zeros: Zeros, isa: Isa, name: str) -> Any:
    """The function (a, b, [s_a, s_b, s_y], y)."""
    lanes = isa.lanes

    def product(a: Any, b: Any, numbers: list[Any]) -> Any:
        scale_a, scale_b, scale = numbers
        values = [
            tirx.Cast(f"float32x{lanes}", codes - splat(zero, "int32", lanes)) * s
            for codes, zero, s in ((a, zeros.a, scale_a), (b, zeros.b, scale_b))
        ]
        steps = values[0] * values[1] / scale
        return isa.nearest(bounded(steps, lanes)) + splat(zeros.y, "int32", lanes)

    return by_element(pair, isa, name, product)


def by_element(pair: Pair, isa: Isa, name: str, result: Callable[[Any, Any, list[Any]], Any]) -> Any:
    """The function (a, b, three numbers, y): int32 codes of both, and the numbers, give int32 codes."""
    k, lanes = Builder(name), isa.lanes
    a, b = k.argument("a", "uint8", pair.a.size), k.argument("b", "uint8", pair.b.size)
    numbers = k.argument("numbers", "float32", 3)
    y = k.argument("y", "uint8", pair.y.size)
    for extent, place in runs(k, (pair.a, pair.b, pair.y)):
        for strip in strips(extent, isa.bytes, lanes):
            with k.loop(strip.turns) as i:
                at = strip.begin + i * strip.width
                held = [splat(k.load(numbers, j), "float32", lanes) for j in range(3)]
                rounded = []
                for part in range(0, strip.width, lanes):
                    first, second = (
                        tirx.Cast(f"int32x{lanes}", k.load(buffer, place(plane) + at + part, lanes))
                        for buffer, plane in ((a, pair.a), (b, pair.b))
                    )
                    rounded.append(k.bind(result(first, second, held)))
                store_codes(k, isa, y, place(pair.y) + at, rounded)
    return k.function()


def runs(k: Builder, planes: tuple[Plane, ...]) -> Iterator[tuple[int, Place]]:
    """Bytes side by side in every plane, inside loops: lines, or pixels where the pitches or widths differ.

    Of a plane with one image, line or pixel that one is read again.
    """
    y = planes[-1]
    with k.loop(y.images) as n, k.loop(y.height, shared=True) as h, ExitStack() as pixels:
        if len({(plane.pitch, plane.width) for plane in planes}) == 1:
            w, extent = 0, y.width * y.pitch
        else:
            w, extent = pixels.enter_context(k.loop(y.width)), pitch_of(y.channels)

        def place(p: Plane) -> Any:
            turns = ((n, p.image, p.images), (h, p.line, p.height), (w, p.pitch, p.width))
            return p.origin + sum(turn * size for turn, size, count in turns if count > 1)

        yield extent, place


def table(x: Plane, y: Plane, isa: Isa, name: str) -> Any:
    """The function (x, table [256], y)."""
    k = Builder(name)
    source, entries = k.argument("x", "uint8", x.size), k.argument("table", "uint8", 256)
    result = k.argument("y", "uint8", y.size)
    for extent, place in runs(k, (x, y)):
        mapped(k, isa, (source, place(x)), entries, (result, place(y)), extent)
    return k.function()


def concatenate(inputs: tuple[Plane, ...], y: Plane, isa: Isa, name: str) -> Any:
    """The function (x of each input in turn, table of each, y)."""
    k = Builder(name)
    given = [k.argument(f"x{i}", "uint8", x.size) for i, x in enumerate(inputs)]
    tables = [k.argument(f"table{i}", "uint8", 256) for i in range(len(inputs))]
    result = k.argument("y", "uint8", y.size)
    offset = 0
    for source, entries, x in zip(given, tables, inputs, strict=True):
        with pixels(k, x) as (n, h, w):
            begin, end = (p.origin + n * p.image + h * p.line + w * p.pitch for p in (x, y))
            mapped(k, isa, (source, begin), entries, (result, end + offset), x.channels)
        offset += x.channels
    return k.function()


@contextmanager
def pixels(k: Builder, plane: Plane) -> Iterator[tuple[Any, Any, Any]]:
    with k.loop(plane.images) as n, k.loop(plane.height, shared=True) as h, k.loop(plane.width) as w:
        yield n, h, w


def mapped(
    k: Builder, isa: Isa, source: tuple[Any, Any], entries: Any, result: tuple[Any, Any], extent: int
) -> None:
    """Every byte of an extent through a table; not one byte beyond it is written."""
    (x, x_at), (y, y_at) = source, result
    done = 0
    if isa.lookup is not None:
        held = [k.load(entries, i, isa.bytes) for i in range(0, 256, isa.bytes)]
        cut = extent - extent % isa.lanes
        for begin, count, width in strips(cut, isa.bytes, isa.lanes):
            with k.loop(count) as i:
                at = begin + i * width
                codes = k.load(x, x_at + at, width)
                if width < isa.bytes:
                    codes = tirx.Shuffle([codes] * (isa.bytes // width), list(range(isa.bytes)))
                found = k.bind(isa.lookup(held, codes))
                k.store(
                    y, y_at + at, tirx.Shuffle([found], list(range(width))) if width < isa.bytes else found,
                    width,
                )  # fmt: skip
        done = cut
    if done < extent:
        with k.loop(extent - done) as i:
            code = tirx.Cast("int32", k.load(x, x_at + (done + i)))
            k.store(y, y_at + (done + i), k.load(entries, code))
