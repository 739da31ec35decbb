"""Where floats become codes and codes floats: float32 [N, C, H, W] on one side, a plane on the other.

    encode    q = sat(rne(x / s) + z)        a true division; +inf -> 255, NaN -> 0
    decode    x = float32(q - z) s

Both turn lines of channels into channels of pixels, or back, in registers: `Isa.interleave` of four channels
gives the four codes of every pixel side by side, and of four pixels the four codes of every channel.
"""

from collections.abc import Iterator
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.strips import bounded
from qcompiler.backends.tvm.plane import Plane

TOGETHER = 4  # what is interleaved at a time
PART = 16  # bytes within which a register is unpacked


def pieces(k: Builder, extent: int, longest: int, shortest: int) -> Iterator[tuple[Any, int]]:
    """Begin and length of the pieces of a line, inside loops: long ones, short ones, single elements.

    Where a short piece fits at all, the last one is moved back instead, and does some of its work again.
    """
    done, length = 0, longest
    while length >= shortest:
        count = (extent - done) // length
        if count:
            with k.loop(count) as i:
                yield done + i * length, length
        done, length = done + count * length, length // 2
    if done < extent and extent >= shortest:
        yield tirx.const(extent - shortest, "int32"), shortest
    elif done < extent:
        with k.loop(extent - done) as i:
            yield done + i, 1


# ---------------------------------------------------------------- floats to codes


def encode(y: Plane, zero_point: int, isa: Isa, name: str) -> Any:
    """The function (x, [s], y); the border of y becomes the zero point."""
    k = Builder(name)
    x = k.argument("x", "float32", y.images * y.channels * y.height * y.width)
    scale = k.argument("scale", "float32", 1)
    codes = k.argument("y", "uint8", y.size)
    step = k.load(scale, 0)
    with k.loop(y.images) as n:
        fill_border(k, codes, y, n, zero_point)
        for first, count, channels in groups(y.channels, TOGETHER):
            with k.loop(count) as group, k.loop(y.height, shared=True) as h:
                channel = first + group * TOGETHER
                begins = [((n * y.channels + channel + c) * y.height + h) * y.width for c in range(channels)]
                to = y.origin + n * y.image + h * y.line + channel
                for w, length in pieces(k, y.width, isa.bytes, isa.lanes):
                    at = to + w * y.pitch
                    if length == 1:
                        for c, begin in enumerate(begins):
                            k.store(codes, at + c, one_code(k.load(x, begin + w), step, zero_point))
                        continue
                    lines = [
                        line_of_codes(k, isa, x, begin + w, step, zero_point, length) for begin in begins
                    ]
                    scatter(k, isa, codes, at, y, lines, length)
    return k.function()


def groups(channels: int, size: int) -> list[tuple[int, int, int]]:
    """First channel, how many groups there are, and channels in each: whole groups, then what is left."""
    left = channels % size
    found = [(0, channels // size, size), (channels - left, 1, left)]
    return [(first, count, each) for first, count, each in found if count and each]


def line_of_codes(k: Builder, isa: Isa, x: Any, at: Any, step: Any, zero_point: int, length: int) -> Any:
    """A register with the codes of up to four vectors of one channel; packed, not yet in order."""
    rounded = []
    for v in range(0, length, isa.lanes):
        ratio = k.bind(k.load(x, at + v, isa.lanes) / splat(step, "float32", isa.lanes))
        rounded.append(isa.nearest(bounded(ratio, isa.lanes)) + splat(zero_point, "int32", isa.lanes))
    rounded += rounded[-1:] * (TOGETHER - len(rounded))
    return k.keep(isa.narrow(rounded), "uint8", isa.bytes)


def one_code(x: Any, step: Any, zero_point: int) -> Any:
    """The same of a single number, where a line is shorter than a vector; NaN is less than nothing."""
    low, high = (tirx.const(v, "float32") for v in (-512.0, 512.0))
    ratio = x / step
    ratio = tirx.Select(ratio > high, high, tirx.Select(ratio > low, ratio, low))
    rounded = tirx.Cast("int32", tirx.op.nearbyint(ratio)) + zero_point
    return tirx.Cast("uint8", tirx.max(tirx.min(rounded, tirx.const(255, "int32")), tirx.const(0, "int32")))


def scatter(k: Builder, isa: Isa, y: Any, at: Any, plane: Plane, lines: list[Any], length: int) -> None:
    """Up to four channels of `length` pixels, each pixel's codes side by side.

    Interleaving undoes the order of packing as well: register v holds pixels v lanes .. v lanes + lanes - 1.
    """
    channels = len(lines)
    registers = isa.interleave(lines + lines[-1:] * (TOGETHER - channels))
    for v in range(length // isa.lanes):
        pixels = k.keep(registers[v], "uint8", isa.bytes)
        begin = at + v * isa.lanes * plane.pitch
        if plane.pitch == channels:
            dense = [pixel * TOGETHER + c for pixel in range(isa.lanes) for c in range(channels)]
            k.store(y, begin, tirx.Shuffle([pixels], dense), len(dense))
            continue
        for pixel in range(isa.lanes):
            taken = [pixel * TOGETHER + c for c in range(channels)]
            k.store(y, begin + pixel * plane.pitch, tirx.Shuffle([pixels], taken), channels)


def fill_border(k: Builder, y: Any, plane: Plane, n: Any, zero_point: int) -> None:
    """The zero point above, below and on both sides of one image."""
    if not plane.border:
        return
    zero = tirx.const(zero_point, "uint8")
    start, side = n * plane.image, plane.border * plane.pitch
    ends = plane.border * plane.line + side  # the lines above, and the left end of the first
    with k.loop(ends) as i:
        k.store(y, start + i, zero)
    with k.loop(plane.height - 1) as h, k.loop(2 * side) as i:
        k.store(y, start + ends + plane.width * plane.pitch + h * plane.line + i, zero)
    with k.loop(ends) as i:
        k.store(y, start + plane.image - ends + i, zero)


# ---------------------------------------------------------------- codes to floats


def decode(x: Plane, zero_point: int, isa: Isa, name: str) -> Any:
    """The function (x, [s], y)."""
    k = Builder(name)
    codes = k.argument("x", "uint8", x.size)
    scale = k.argument("scale", "float32", 1)
    y = k.argument("y", "float32", x.images * x.channels * x.height * x.width)

    def floats(values: Any, lanes: int) -> Any:
        zero, step = tirx.const(zero_point, "int32"), k.load(scale, 0)
        if lanes == 1:
            return tirx.Cast("float32", tirx.Cast("int32", values) - zero) * step
        centered = tirx.Cast(f"int32x{lanes}", values) - splat(zero, "int32", lanes)
        return tirx.Cast(f"float32x{lanes}", centered) * splat(step, "float32", lanes)

    with k.loop(x.images) as n:
        image, result = x.origin + n * x.image, n * (x.channels * x.height * x.width)
        if x.height == x.width == 1:  # channels are side by side on both sides
            for c, length in pieces(k, x.channels, isa.lanes, isa.lanes):
                k.store(y, result + c, floats(k.load(codes, image + c, length), length), length)
            blocks = []
        else:
            blocks = groups(x.channels, PART)
        for first, count, channels in blocks:
            with k.loop(count) as group, k.loop(x.height, shared=True) as h:
                channel = first + group * PART
                to = result + (channel * x.height + h) * x.width
                for w, length in pieces(k, x.width, isa.lanes, isa.lanes):
                    at = image + h * x.line + w * x.pitch + channel
                    found = gathered(k, isa, codes, at, x.pitch, channels, length)
                    for c, value in enumerate(found):
                        k.store(y, to + c * (x.height * x.width) + w, floats(value, length), length)
    return k.function()


def gathered(k: Builder, isa: Isa, x: Any, at: Any, pitch: int, channels: int, length: int) -> list[Any]:
    """The codes of up to 16 channels, each of `length` pixels."""
    if length == 1:
        return [k.load(x, at + c) for c in range(channels)]
    parts = isa.bytes // PART
    four = []
    for u in range(TOGETHER):
        pixels = [k.load(x, at + (TOGETHER * part + u) * pitch, PART) for part in range(parts)]
        four.append(tirx.Shuffle(pixels, list(range(isa.bytes))))
    registers = [k.keep(value, "uint8", isa.bytes) for value in isa.interleave(four)]
    return [
        tirx.Shuffle(
            [registers[c // TOGETHER]],
            [part * PART + c % TOGETHER * TOGETHER + u for part in range(parts) for u in range(TOGETHER)],
        )
        for c in range(channels)
    ]
