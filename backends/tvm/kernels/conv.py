"""Convolutions and linears: int32 sums of products of codes, and codes again, in one pass.

    acc[n, h, w, o] = b[o] + sum x[n, h S + kh, w S + kw, c] w[o, kh, kw, c]
    y = sat(rne(float32(acc) m[o]) + z),  or  sat(rne(fma(r, r_s, fma(float32(acc), m[o], r_0))) + z)
        or  t[y],  or  float32(acc) m[o],  or  fma(float32(acc), m[o], a)

Where the range of x is taken at run time, its scale s and zero point z are numbers of the call, and a bias of
floats c may be added:

    acc = -z sum w[o] + ..      y = float32(acc) (s m[o]) [+ c[o]],  or  fma(float32(acc), s m[o], [c[o] +] a)

By pixel, one row of a kernel is contiguous in memory, so a convolution is KH products of matrices whose rows
overlap: no copies, and one inner loop for every kernel size and stride. A linear is one of a single line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.plane import NUMBER, Plane

LINE = 64  # bytes of the cache
NEAR = 512 << 10  # bytes of results that the second cache keeps from one use of their memory to the next


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """One layer on planes; the input's zero point is in the bias.

    Invariant: the border of `x` is as wide as the padding; the outputs of a group fill whole registers
    (`merged` makes it so) unless there is one group.
    """

    x: Plane
    y: Plane
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    residual: Plane | None = None
    shifted: bool = False  # results have a zero point; a number of the call, so that equal layers share code
    to_float: bool = False  # the plane of results then holds float32 numbers,
    addend: Plane | None = None  # and others may be added to them
    ranged: bool = False  # the scale and the zero point of x are numbers of the call; wants `to_float`,
    offset: bool = False  # and floats may be added to the results
    table: bool = False  # codes are looked up before they are stored; wants an instruction set with `lookup`

    @cached_property
    def runs(self) -> tuple[int, int, int]:
        """Contiguous bytes under a kernel: how many runs down and across, and the length of each."""
        if self.groups == 1 and self.dilation[1] == 1:
            return self.kernel[0], 1, (self.kernel[1] - 1) * self.x.pitch + self.x.channels
        return *self.kernel, self.x.channels // self.groups

    @property
    def products(self) -> int:
        """Multiply-accumulates of the layer itself, without the zeros that fill registers."""
        outputs = self.y.images * self.y.height * self.y.width * self.y.channels
        return outputs * self.kernel[0] * self.kernel[1] * self.x.channels // self.groups


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The schedule: `rows` pixels of a line by `columns` registers of channels are summed at a time.

    channels_first: all pixels with some channels, then the next channels; weights are then read once.
    prefetch: the weights of the next channels are brought near meanwhile.
    """

    rows: int
    columns: int
    channels_first: bool = True
    prefetch: bool = False


def convolution(layer: Convolution, tile: Tile, isa: Isa, name: str) -> Any:
    """The function (x, [residual,] [addend,] [s, z of x,] weights, bias, m, [c,] [ratio and offset,] [table,]
    [z,] y); of a range that is taken at run time the bias is -sum w.
    """
    return Kernel(layer, tile, isa, name).function()


class Kernel:
    """The function under construction: what all of its parts refer to."""

    def __init__(self, layer: Convolution, tile: Tile, isa: Isa, name: str) -> None:
        self.layer, self.isa, k = layer, isa, Builder(name)
        down, across, length = layer.runs
        steps = -(-length // isa.unit)
        self.panel = (
            down * across * steps * isa.lanes * isa.unit
        )  # bytes of weights for a register of channels
        self.panels = -(-layer.y.channels // layer.groups // isa.lanes)  # in a group
        self.tile = Tile(
            rows=min(tile.rows, layer.y.width), columns=min(tile.columns, self.panels),
            channels_first=tile.channels_first, prefetch=tile.prefetch,
        )  # fmt: skip
        channels = layer.groups * self.panels * isa.lanes
        self.k, self.steps = k, steps
        self.x = k.argument("x", "uint8", layer.x.size)
        if layer.residual is not None:
            self.residual = k.argument("residual", "uint8", layer.residual.size)
        if layer.addend is not None:
            self.addend = k.argument("addend", "float32", layer.addend.size)
        if layer.ranged:
            self.x_scale = k.argument("x_scale", "float32", NUMBER.size)
            self.x_zero = k.argument("x_zero", "int32", NUMBER.size)
        self.weights = k.argument("weights", "int8", layer.groups * self.panels * self.panel + LINE)
        self.bias = k.argument("bias", "int32", channels)
        self.multiplier = k.argument("multiplier", "float32", channels)
        if layer.offset:
            self.offset = k.argument("offset", "float32", channels)
        if layer.residual is not None:
            self.ratio = k.argument("ratio", "float32", 2)
        if layer.table:
            self.table = k.argument("table", "uint8", 256)
        if layer.shifted:
            self.zero = k.argument("zero", "int32", 1)
        self.y = k.argument("y", "float32" if layer.to_float else "uint8", layer.y.size)

    def function(self) -> Any:
        k, tile, y = self.k, self.tile, self.layer.y
        blocks, lines, tiles = -(-self.panels // tile.columns), y.height, -(-y.width // tile.rows)
        outer, inner = (blocks, lines) if tile.channels_first else (lines, blocks)
        extents = self.layer.groups, outer, inner, tiles
        most = extents.index(max(extents))
        nest = [k.loop(extent, shared=place == most) for place, extent in enumerate(extents)]
        with k.loop(y.images) as n, nest[0] as g, nest[1] as i, nest[2] as j, nest[3] as t:
            block, h = (i, j) if tile.channels_first else (j, i)
            panel = within(k, block, tile.columns, self.panels)
            w = within(k, t, tile.rows, y.width)
            sums = self.start(g, panel)
            if self.layer.to_float and 4 * y.size > NEAR:
                self.announce(sums, (n, g, panel, h, w))
            self.accumulate(sums, (n, g, panel, h, w), h * tiles + t, lines * tiles)
            self.finish(sums, (n, g, panel, h, w))
        return k.function()

    def start(self, g: Any, panel: Any) -> list[list[Any]]:
        """Registers of sums [rows][columns], holding the bias."""
        k, lanes, tile = self.k, self.isa.lanes, self.tile
        sums = [[k.register("int32", lanes) for _ in range(tile.columns)] for _ in range(tile.rows)]
        for j in range(tile.columns):
            bias = k.load(self.bias, (g * self.panels + panel + j) * lanes, lanes)
            if self.layer.ranged:
                bias = bias * splat(k.load(self.x_zero, 0), "int32", lanes)
            held = k.bind(bias)
            for row in sums:
                k.store(row[j], 0, held, lanes)
        return sums

    def announce(self, sums: list[list[Any]], place: tuple[Any, ...]) -> None:
        """Bring near where results will go while they are summed: a store waits for a line that is far."""
        n, g, panel, h, w = place
        channel = (g * self.panels + panel) * self.isa.lanes
        for r, row in enumerate(sums):
            for j in range(0, len(row), LINE // (4 * self.isa.lanes)):
                spot = n, h, w + r, channel + j * self.isa.lanes
                self.k.prefetch(self.y, self.address(self.layer.y, spot))

    def accumulate(self, sums: list[list[Any]], place: tuple[Any, ...], turn: Any, turns: int) -> None:
        """Add the products of every run of bytes; `turn` of `turns` is how far the pixels have come."""
        k, isa, layer, x = self.k, self.isa, self.layer, self.layer.x
        (n, g, panel, h, w), (down, across, _) = place, layer.runs
        corner = (
            x.origin + n * x.image + (h * layer.stride[0] - layer.padding[0]) * x.line
            + (w * layer.stride[1] - layer.padding[1]) * x.pitch + g * (x.channels // layer.groups)
        )  # fmt: skip
        first = (g * self.panels + panel) * self.panel
        with k.loop(down) as kh, k.loop(across) as kw, k.loop(self.steps) as s:
            step = (kh * across + kw) * self.steps + s
            if self.tile.prefetch:
                steps = down * across * self.steps
                share = Fraction(self.tile.columns * self.panel // LINE, turns * steps)
                line = tirx.floordiv((turn * steps + step) * share.numerator, share.denominator)
                k.prefetch(self.weights, first + self.tile.columns * self.panel + line * LINE)
            at = first + step * isa.lanes * isa.unit
            panels = [k.bind(isa.panel(self.weights, at + j * self.panel)) for j in range(self.tile.columns)]
            begin = corner + kh * layer.dilation[0] * x.line + kw * layer.dilation[1] * x.pitch + s * isa.unit
            for r, row in enumerate(sums):
                codes = k.bind(isa.spread(self.x, begin + r * layer.stride[1] * x.pitch))
                for register, held in zip(row, panels, strict=True):
                    k.store(register, 0, isa.dot(k.load(register, 0, isa.lanes), codes, held), isa.lanes)

    def finish(self, sums: list[list[Any]], place: tuple[Any, ...]) -> None:
        """Scale, round, saturate and store, four registers at a time."""
        k, isa, y = self.k, self.isa, self.layer.y
        n, g, panel, h, w = place
        channel = (g * self.panels + panel) * isa.lanes
        scales = [self.scale(channel + j * isa.lanes) for j in range(len(sums[0]))]
        if self.layer.to_float:
            for r, row in enumerate(sums):
                for j, register in enumerate(row):
                    spot = n, h, w + r, channel + j * isa.lanes
                    value = self.scaled(register, scales[j], spot)
                    k.store(self.y, self.address(y, spot), value, isa.lanes)
            return
        entries = self.entries()
        spots = [(r, j) for r in range(len(sums)) for j in range(len(scales))]
        for begin in range(0, len(spots), 4):
            four = spots[begin : begin + 4]
            rounded = [
                self.rounded(sums[r][j], scales[j], (n, h, w + r, channel + j * isa.lanes)) for r, j in four
            ]
            codes = k.bind(isa.narrow(rounded + rounded[-1:] * (4 - len(four))))
            if entries and isa.lookup is not None:
                codes = k.bind(isa.lookup(entries, codes))
            for first, count in neighbours(four):
                r, j = four[first]
                at = self.address(y, (n, h, w + r, channel + j * isa.lanes))
                order = list(isa.order[first * isa.lanes : (first + count) * isa.lanes])
                k.store(self.y, at, tirx.Shuffle([codes], order), count * isa.lanes)

    def entries(self) -> list[Any]:
        """The table in registers, if there is one."""
        if not self.layer.table:
            return []
        return [self.k.load(self.table, begin, self.isa.bytes) for begin in range(0, 256, self.isa.bytes)]

    def scale(self, channel: Any) -> Any:
        """Steps of the result per step of the sums."""
        k, lanes = self.k, self.isa.lanes
        scale = k.load(self.multiplier, channel, lanes)
        if not self.layer.ranged:
            return k.bind(scale)
        return k.keep(scale * splat(k.load(self.x_scale, 0), "float32", lanes), "float32", lanes)

    def scaled(self, register: Any, scale: Any, place: tuple[Any, ...]) -> Any:
        """A float result, with what is added to it."""
        lanes = self.isa.lanes
        value = tirx.Cast(f"float32x{lanes}", self.k.load(register, 0, lanes))
        channel = place[-1]
        offset = self.k.load(self.offset, channel, lanes) if self.layer.offset else None
        if self.layer.addend is not None:
            addend = self.k.load(self.addend, self.address(self.layer.addend, place), lanes)
            return tirx.op.fma(value, scale, addend if offset is None else offset + addend)
        if offset is None:
            return value * scale
        # LLVM may join a product and a sum; one that adds 0 already stays alone, so both are rounded.
        return tirx.op.fma(value, scale, splat(0.0, "float32", lanes)) + offset

    def rounded(self, register: Any, scale: Any, place: tuple[Any, ...]) -> Any:
        """Steps of the result, rounded, with its zero point."""
        k, isa, lanes = self.k, self.isa, self.isa.lanes
        value = tirx.Cast(f"float32x{lanes}", k.load(register, 0, lanes))
        if self.layer.residual is None:
            value = value * scale
        else:
            value = tirx.op.fma(value, scale, splat(self.ratio[1], "float32", lanes))
            codes = k.load(self.residual, self.address(self.layer.residual, place), lanes)
            codes = tirx.Cast(f"float32x{lanes}", codes)
            value = tirx.op.fma(codes, splat(self.ratio[0], "float32", lanes), value)
        found = isa.nearest(value)
        return found + splat(self.k.load(self.zero, 0), "int32", lanes) if self.layer.shifted else found

    def address(self, plane: Plane, place: tuple[Any, ...]) -> Any:
        n, h, w, channel = place
        return plane.origin + n * plane.image + h * plane.line + w * plane.pitch + channel


def within(k: Builder, turn: Any, size: int, extent: int) -> Any:
    """Where a tile begins; the last one is moved back into the extent, and computes some results again."""
    if extent % size == 0:
        return turn * size
    return k.bind(tirx.min(turn * size, extent - size))


def neighbours(spots: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """First and count of those that lie side by side in memory: one row, following columns."""
    first = 0
    for position in range(1, len(spots) + 1):
        row, column = spots[position - 1]
        if position == len(spots) or spots[position] != (row, column + 1):
            yield first, position - first
            first = position


def pack(layer: Convolution, codes: NDArray[np.int8], isa: Isa) -> NDArray[np.int8]:
    """[O, C / groups, KH, KW] -> [groups, panels, down, across, steps, lanes, unit], zeros in between."""
    down, across, length = layer.runs
    outputs, inputs = codes.shape[:2]
    by_pixel = codes.transpose(0, 2, 3, 1)
    runs = np.zeros((outputs, down, across, -(-length // isa.unit) * isa.unit), np.int8)
    if across == layer.kernel[1]:
        runs[..., :inputs] = by_pixel
    else:
        for kw in range(layer.kernel[1]):
            runs[:, :, 0, kw * layer.x.pitch :][:, :, :inputs] = by_pixel[:, :, kw]
    in_group = outputs // layer.groups
    panels = -(-in_group // isa.lanes)
    full = np.zeros((layer.groups, panels * isa.lanes, *runs.shape[1:]), np.int8)
    full[:, :in_group] = runs.reshape(layer.groups, in_group, *runs.shape[1:])
    split = full.reshape(layer.groups, panels, isa.lanes, down, across, -1, isa.unit)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 4, 5, 2, 6))


def merged(codes: NDArray[np.int8], groups: int, isa: Isa) -> tuple[NDArray[np.int8], int]:
    """Groups joined, with zeros between them, until the outputs of each fill whole registers.

    [O, C / groups, ..], groups  -->  [O, C / fewer, ..], fewer
    """
    outputs = len(codes) // groups
    times = next((n for n in range(1, groups) if groups % n == 0 and n * outputs % isa.lanes == 0), groups)
    inputs = codes.shape[1]
    wide = np.zeros((len(codes), inputs * times, *codes.shape[2:]), codes.dtype)
    for output in range(len(codes)):
        first = output // outputs % times * inputs
        wide[output, first : first + inputs] = codes[output]
    return wide, groups // times
