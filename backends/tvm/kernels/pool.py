"""Pools: the largest code of a window, or the mean of its codes.

    max       y = max q
    average   y = sat(rne(float32(sum q') / N  (s_x / s_y)) + z_y)        q' = q - z_x, N as torch counts
    global    y = sat(rne(float32(sum q') m) + z_y)                       m = float32(s_x / (s_y H W))

A window is cut to the image, so the border is never read.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.strips import Strip, bounded, store_codes, strips, whole
from qcompiler.backends.tvm.plane import Plane


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A window that slides over a plane.

    Invariant: every window holds a pixel; both pitches are multiples of the lanes.
    """

    x: Plane
    y: Plane
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, kw_only=True)
class Average:
    """What a mean is divided by, and its zero points; `divisor` overrides the count."""

    count_include_pad: bool = True
    divisor: int | None = None
    x_zero: int = 0
    y_zero: int = 0


def max_pool(pool: Pool, isa: Isa, name: str) -> Any:
    """The function (x, y)."""
    k = Builder(name)
    x, y = k.argument("x", "uint8", pool.x.size), k.argument("y", "uint8", pool.y.size)
    with k.loop(pool.y.images) as n, k.loop(pool.y.height, shared=True) as h:
        lines = [k.bind((n * pool.x.image + i * pool.x.line) + pool.x.origin) for i in window(k, pool, 0, h)]
        with k.loop(pool.y.width) as w:
            pixels = [k.bind(i * pool.x.pitch) for i in window(k, pool, 1, w)]
            for strip in strips(whole(pool.x.channels, isa.lanes), isa.bytes, isa.lanes):
                with k.loop(strip.turns) as i:
                    channel = strip.begin + i * strip.width
                    largest = None
                    for line in lines:
                        for pixel in pixels:
                            codes = k.load(x, line + pixel + channel, strip.width)
                            largest = codes if largest is None else tirx.max(largest, codes)
                    k.store(y, place(pool.y, n, h, w, channel), largest, strip.width)
    return k.function()


def window(k: Builder, pool: Pool, axis: int, turn: Any) -> list[Any]:
    """Lines (axis 0) or columns (axis 1) under a window; those outside repeat its first or last inside."""
    extent, dilation = (pool.x.height, pool.x.width)[axis], pool.dilation[axis]
    start = turn * pool.stride[axis] - pool.padding[axis]
    if not crosses(pool, axis):
        return [start + i * dilation for i in range(pool.kernel[axis])]
    start = k.bind(start)
    first = k.bind(tirx.max(0, tirx.floordiv(dilation - 1 - start, dilation)))
    last = k.bind(tirx.floordiv(extent - 1 - start, dilation))
    return [
        k.bind(start + tirx.max(first, tirx.min(last, tirx.const(i, "int32"))) * dilation)
        for i in range(pool.kernel[axis])
    ]


def crosses(pool: Pool, axis: int) -> bool:
    """Whether a window reaches beyond the image."""
    extent, turns = ((pool.x.height, pool.y.height), (pool.x.width, pool.y.width))[axis]
    span = (pool.kernel[axis] - 1) * pool.dilation[axis] + 1
    return pool.padding[axis] > 0 or (turns - 1) * pool.stride[axis] + span > extent


def average_pool(pool: Pool, average: Average, isa: Isa, name: str) -> Any:
    """The function (x, [s_x / s_y], y)."""
    return mean(pool, average, isa, name, divided=True)


def global_average_pool(x: Plane, y: Plane, average: Average, isa: Isa, name: str) -> Any:
    """The function (x, [m], y); of `average` only the zero points matter."""
    size = x.height, x.width
    return mean(Pool(x=x, y=y, kernel=size, stride=size), average, isa, name, divided=False)


def mean(pool: Pool, average: Average, isa: Isa, name: str, *, divided: bool) -> Any:
    """Sums of a window, divided by its count or not, times one number."""
    k = Builder(name)
    x = k.argument("x", "uint8", pool.x.size)
    factor = k.argument("factor", "float32", 1)
    y = k.argument("y", "uint8", pool.y.size)
    with k.loop(pool.y.images) as n, k.loop(pool.y.height, shared=True) as h, k.loop(pool.y.width) as w:
        (top, lines, tall), (left, columns, broad) = (cut(k, pool, axis, t) for axis, t in ((0, h), (1, w)))
        counted = tall * broad if average.count_include_pad else lines * columns
        count = k.bind(tirx.const(average.divisor, "int32") if average.divisor else counted)
        nothing = k.bind(lines * columns * -average.x_zero)
        begin = pool.x.origin + n * pool.x.image + top * pool.x.line + left * pool.x.pitch
        for strip in strips(whole(pool.x.channels, isa.lanes), isa.bytes, isa.lanes):
            with k.loop(strip.turns) as i:
                channel = strip.begin + i * strip.width
                sums = start(k, isa, strip, nothing)
                with k.loop(lines) as line, k.loop(columns) as column:
                    at = begin + line * pool.x.line + column * pool.x.pitch + channel
                    for j, register in enumerate(sums):
                        codes = tirx.Cast(f"int32x{isa.lanes}", k.load(x, at + j * isa.lanes, isa.lanes))
                        k.store(register, 0, k.load(register, 0, isa.lanes) + codes, isa.lanes)
                rounded = []
                for register in sums:
                    value = tirx.Cast(f"float32x{isa.lanes}", k.load(register, 0, isa.lanes))
                    if divided:
                        value = value / splat(tirx.Cast("float32", count), "float32", isa.lanes)
                    steps = k.bind(value * splat(k.load(factor, 0), "float32", isa.lanes))
                    rounded.append(
                        isa.nearest(bounded(steps, isa.lanes)) + splat(average.y_zero, "int32", isa.lanes)
                    )
                store_codes(k, isa, y, place(pool.y, n, h, w, channel), rounded)
    return k.function()


def start(k: Builder, isa: Isa, strip: Strip, value: Any) -> list[Any]:
    sums = [k.register("int32", isa.lanes) for _ in range(strip.width // isa.lanes)]
    for register in sums:
        k.store(register, 0, splat(value, "int32", isa.lanes), isa.lanes)
    return sums


def cut(k: Builder, pool: Pool, axis: int, turn: Any) -> tuple[Any, Any, Any]:
    """First line or column of a window inside the image, how many lie inside, and in the padded image."""
    extent, size, padding = (pool.x.height, pool.x.width)[axis], pool.kernel[axis], pool.padding[axis]
    begin = turn * pool.stride[axis] - padding
    if not crosses(pool, axis):
        return begin, tirx.const(size, "int32"), tirx.const(size, "int32")
    begin = k.bind(begin)
    end = k.bind(tirx.min(begin + size, extent + padding))
    first = k.bind(tirx.max(begin, 0))
    return first, k.bind(tirx.min(end, extent) - first), k.bind(end - begin)


def place(plane: Plane, n: Any, h: Any, w: Any, channel: Any) -> Any:
    return plane.origin + n * plane.image + h * plane.line + w * plane.pitch + channel
