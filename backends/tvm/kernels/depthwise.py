"""Depthwise convolutions: every channel has a kernel of its own.

    acc[n, h, w, c] = b[c] + sum x[n, h S + kh D, w S + kw D, c] w[c, kh, kw]
    y = sat(rne(float32(acc) m[c]) + z)

A dot product of four bytes wants four taps side by side, and by pixel those of one channel are a pitch apart.
So four pixels of a line are interleaved, once for all the outputs above and beside one another that see them:
under a kernel three wide with stride 1, pixels p .. p + 3 serve output p with the taps (0, 1, 2, -) and its
neighbour with (-, 0, 1, 2). Other kernels take four of their taps at a time.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import within
from qcompiler.backends.tvm.kernels.strips import Strip, strips, whole
from qcompiler.backends.tvm.plane import Plane

PART = 16  # bytes within which registers are unpacked and packed
TALL = 3  # lines of a kernel; those of a taller one are a loop
NONE = -1  # no tap: its weight is 0

Taps = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Depthwise:
    """One layer on planes; the input's zero point is in the bias.

    Invariant: the border of `x` is as wide as the padding, both pitches are multiples of 16.
    """

    x: Plane
    y: Plane
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    zero_point: int = 0

    @property
    def channels(self) -> int:
        return whole(self.x.channels, PART)

    @cached_property
    def variants(self) -> list[Taps]:
        """The orders in which the taps of a line meet four pixels."""
        return list(dict.fromkeys(taps for feed in feeds(self, 2) for _, taps in feed.uses))


@dataclass(frozen=True, kw_only=True)
class Patch:
    """The schedule: `rows` lines by `columns` pixels of the result are summed at a time.

    channels_first: all pixels with some channels, then the next channels.
    """

    rows: int = 2
    columns: int = 2
    channels_first: bool = False


class Feed(NamedTuple):
    """Four pixels to interleave (offsets in a line of x), and the columns that meet them in which taps."""

    pixels: Taps
    uses: list[tuple[int, Taps]]


def feeds(layer: Depthwise, columns: int) -> list[Feed]:
    """All that a line of x gives to a line of `columns` results."""
    width, stride, dilation = layer.kernel[1], layer.stride[1], layer.dilation[1]
    found = []
    if (width, stride, dilation) == (3, 1, 1):
        for j in range(0, columns - 1, 2):
            found.append(Feed((j, j + 1, j + 2, j + 3), [(j, (0, 1, 2, NONE)), (j + 1, (NONE, 0, 1, 2))]))
        if columns % 2:
            j = columns - 1
            found.append(single(j, (j, j + 1, j + 2), (0, 1, 2, NONE)))
        return found
    for j in range(columns):
        for first in range(0, width, 4):
            taps = tuple(range(first, min(first + 4, width)))
            pixels = tuple(j * stride + tap * dilation for tap in taps)
            found.append(single(j, pixels, taps + (NONE,) * (4 - len(taps))))
    return found


def single(column: int, pixels: Taps, taps: Taps) -> Feed:
    """Pixels of one column alone; what has no tap repeats one that is sure to exist, and is not the last:
    of a register unpacked with itself LLVM makes slower permutations."""
    return Feed(
        pixels + pixels[-2:-1] * (4 - len(pixels)) if len(pixels) > 1 else pixels * 4, [(column, taps)]
    )


def depthwise(layer: Depthwise, patch: Patch, isa: Isa, name: str) -> Any:
    """The function (x, weights, bias, multiplier, y); `pack` and `arranged` order what it takes."""
    return Kernel(layer, patch, isa, name).function()


class Kernel:
    """The function under construction: what all of its parts refer to."""

    def __init__(self, layer: Depthwise, patch: Patch, isa: Isa, name: str) -> None:
        self.layer, self.isa, self.k = layer, isa, Builder(name)
        self.patch = Patch(
            rows=min(patch.rows, layer.y.height) if layer.kernel[0] <= TALL else 1,
            columns=min(patch.columns, layer.y.width), channels_first=patch.channels_first,
        )  # fmt: skip
        blocks = len(order(layer, isa))
        self.block = layer.kernel[0] * len(layer.variants) * 4 * isa.bytes  # bytes of weights
        self.x = self.k.argument("x", "uint8", layer.x.size)
        self.weights = self.k.argument("weights", "int8", blocks * self.block)
        self.bias = self.k.argument("bias", "int32", blocks * isa.bytes)
        self.multiplier = self.k.argument("multiplier", "float32", blocks * isa.bytes)
        self.y = self.k.argument("y", "uint8", layer.y.size)

    def function(self) -> Any:
        first = 0
        with self.k.loop(self.layer.y.images) as n:
            for strip in strips(self.layer.channels, self.isa.bytes, PART):
                self.strip(n, strip, first)
                first += strip.turns
        return self.k.function()

    def strip(self, n: Any, strip: Strip, first: int) -> None:
        """All pixels with channels that fill a register, or with a few channels of several pixels beside."""
        k, patch, y = self.k, self.patch, self.layer.y
        beside = self.isa.bytes // strip.width
        lines, tiles = -(-y.height // patch.rows), -(-y.width // (patch.columns * beside))
        early, late = (strip.turns, 1) if patch.channels_first else (1, strip.turns)
        with k.loop(early) as i, k.loop(lines) as line, k.loop(tiles) as t, k.loop(late) as j:
            block = i if patch.channels_first else j
            channel = strip.begin + block * strip.width
            h = within(k, line, patch.rows, y.height)
            ws = [self.column(t * beside + part, beside) for part in range(beside)]
            sums = self.start(first + block)
            self.accumulate(sums, first + block, (n, h, ws, channel))
            self.finish(sums, first + block, (n, h, ws, channel))

    def column(self, turn: Any, beside: int) -> Any:
        columns, width = self.patch.columns, self.layer.y.width
        if width % (columns * beside) == 0:
            return turn * columns
        return self.k.bind(tirx.min(turn * columns, width - columns))

    def start(self, block: Any) -> list[list[list[Any]]]:
        """Registers of sums [rows][columns][4], holding the bias."""
        k, lanes, patch = self.k, self.isa.lanes, self.patch
        sums = [
            [[k.register("int32", lanes) for _ in range(4)] for _ in range(patch.columns)]
            for _ in range(patch.rows)
        ]
        for q in range(4):
            bias = k.keep(k.load(self.bias, (block * 4 + q) * lanes, lanes), "int32", lanes)
            for row in sums:
                for column in row:
                    k.store(column[q], 0, bias, lanes)
        return sums

    def accumulate(self, sums: list[list[list[Any]]], block: Any, place: tuple[Any, ...]) -> None:
        """Every line of x with all the lines of results that see it."""
        layer, x, rows = self.layer, self.layer.x, range(self.patch.rows)
        (n, h, ws, channel), (stride, dilation), height = place, self.vertical, layer.kernel[0]
        top = x.origin + n * x.image + (h * stride - layer.padding[0]) * x.line + channel
        corners = [top + (w * layer.stride[1] - layer.padding[1]) * x.pitch for w in ws]
        if height > TALL:
            with self.k.loop(height) as kh:
                begins = [corner + kh * (dilation * x.line) for corner in corners]
                self.line(sums, block, begins, [(0, kh)])
            return
        for line in range((len(rows) - 1) * stride + (height - 1) * dilation + 1):
            uses = [(r, kh) for r in rows for kh in range(height) if r * stride + kh * dilation == line]
            if uses:
                self.line(sums, block, [corner + line * x.line for corner in corners], uses)

    @property
    def vertical(self) -> tuple[int, int]:
        return self.layer.stride[0], self.layer.dilation[0]

    def line(
        self, sums: list[list[list[Any]]], block: Any, begins: list[Any], uses: list[tuple[int, Any]]
    ) -> None:
        """Interleave the pixels of one line, and add their products: (row of results, line of the kernel)."""
        k, isa, variants = self.k, self.isa, self.layer.variants
        for feed in feeds(self.layer, self.patch.columns):
            four = [self.pixel(begins, offset) for offset in feed.pixels]
            codes = [k.keep(value, "uint8", isa.bytes) for value in isa.interleave(four)]
            for column, taps in feed.uses:
                for row, kh in uses:
                    at = block * self.block + (kh * len(variants) + variants.index(taps)) * 4 * isa.bytes
                    for q, register in enumerate(sums[row][column]):
                        held = isa.panel(self.weights, at + q * isa.bytes)
                        k.store(
                            register, 0, isa.dot(k.load(register, 0, isa.lanes), codes[q], held), isa.lanes
                        )

    def pixel(self, begins: list[Any], offset: int) -> Any:
        """A register of one pixel, or of pixels side by side with fewer channels each."""
        width = self.isa.bytes // len(begins)
        parts = [self.k.load(self.x, begin + offset * self.layer.x.pitch, width) for begin in begins]
        return parts[0] if len(parts) == 1 else tirx.Shuffle(parts, list(range(self.isa.bytes)))

    def finish(self, sums: list[list[list[Any]]], block: Any, place: tuple[Any, ...]) -> None:
        """Scale, round, saturate and store: packing undoes what interleaving did."""
        k, isa, y, zero = self.k, self.isa, self.layer.y, self.layer.zero_point
        (n, h, ws, channel), lanes, width = place, self.isa.lanes, self.isa.bytes // len(place[2])
        scales = [k.bind(k.load(self.multiplier, (block * 4 + q) * lanes, lanes)) for q in range(4)]
        for r, row in enumerate(sums):
            for j, column in enumerate(row):
                values = [
                    tirx.Cast(f"float32x{lanes}", k.load(register, 0, lanes)) * scale
                    for register, scale in zip(column, scales, strict=True)
                ]
                rounded = [isa.nearest(value) for value in values]
                codes = k.bind(
                    isa.narrow([v + splat(zero, "int32", lanes) for v in rounded] if zero else rounded)
                )
                for part, w in enumerate(ws):
                    at = y.origin + n * y.image + (h + r) * y.line + (w + j) * y.pitch + channel
                    taken = list(range(part * width, (part + 1) * width))
                    k.store(self.y, at, codes if len(ws) == 1 else tirx.Shuffle([codes], taken), width)


def order(layer: Depthwise, isa: Isa) -> NDArray[np.int64]:
    """Channels as registers hold them: [blocks, 4, lanes]."""
    found = []
    for begin, count, width in strips(layer.channels, isa.bytes, PART):
        for block in range(count):
            lane = np.arange(isa.lanes) // 4 * PART % width + np.arange(isa.lanes) % 4
            found.append(begin + block * width + np.arange(0, PART, 4)[:, None] + lane)
    return np.stack(found)


def arranged(layer: Depthwise, vector: NDArray[Any], isa: Isa) -> NDArray[Any]:
    """[C] -> [blocks, 4, lanes], with zeros for channels that are not there."""
    full = np.zeros((layer.channels, *vector.shape[1:]), vector.dtype)
    full[: len(vector)] = vector
    return np.asarray(full[order(layer, isa)])


def pack(layer: Depthwise, codes: NDArray[np.int8], isa: Isa) -> NDArray[np.int8]:
    """[C, 1, KH, KW] -> [blocks, KH, variants, 4, lanes, 4 taps]; NONE finds the zeros at the end."""
    lines = np.pad(codes[:, 0], ((0, 0), (0, 0), (0, 1)))[:, :, np.array(layer.variants)]
    return np.ascontiguousarray(arranged(layer, lines, isa).transpose(0, 3, 4, 1, 2, 5))
