"""Linears of float inputs whose weights are codes of few bits: what a step of a decoder is made of.

    s_x[r, b] = max |x[r, b]| / 127        q[r, k] = sat(rne(x[r, k] / s_x[r, b])) `rounded`
    S[r, b, n] = sum over k of block b of q[r, k] (u[n, k] - z[n, b])              int32, exact
    y[r, n]    = fma(S[r, b, n], s_x[r, b] s_w[n, b], y[r, n])   for b = 0, 1, ..  `gemv`
    then + bias[n]; or, where a column has one scale,
    y[r, n]    = fma(s_w[n], fma(S[r, b, n], s_x[r, b], ..), bias[n])
    then + residual[r, n]

Codes u are unsigned, since a vector multiplication takes those beside signed ones: a signed format is shifted
by its zero point (8 for 4 bits, 128 for 8), and -z times the sum of a block's q is where S begins. Weights
lie in the order in which they are read, once, as fast as the memory gives them.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.strips import whole
from qcompiler.backends.tvm.plane import Plane

COLUMNS = 4  # registers of outputs in a panel
ROWS = 4  # of a tile: with COLUMNS, sums fill 16 registers
AHEAD = 4096  # bytes


@dataclass(frozen=True, kw_only=True)
class Gemv:
    """y [rows, outputs] of x [rows, inputs], each row a pixel of a borderless plane.

    block: inputs that share a scale, of a row and (unless `per_column`) of the weights; a multiple of 16.
    zero: the code that stands for 0, or None where each block of a column has its own. scales: how those of
    the weights are stored. residual: a plane that is added. The pitch of y holds whole registers.
    """

    x: Plane
    y: Plane
    residual: Plane | None = None
    bits: Literal[4, 8]
    block: int
    per_column: bool = False
    zero: int | None
    scales: Literal["float32", "float16"] = "float32"
    bias: bool = False

    @property
    def rows(self) -> int:
        return self.x.images * self.x.height * self.x.width

    @property
    def inputs(self) -> int:
        return self.x.channels

    @property
    def outputs(self) -> int:
        return self.y.channels

    @property
    def blocks(self) -> int:
        return -(-self.inputs // self.block)

    @property
    def padded(self) -> int:
        """Inputs in whole blocks."""
        return self.blocks * self.block

    @property
    def steps(self) -> int:
        """Scales of a column."""
        return 1 if self.per_column else self.blocks

    @property
    def takes_bias(self) -> bool:
        """LLVM fuses a product with a sum behind it; so that it is always this one, it may be of zeros."""
        return self.bias or self.per_column

    @property
    def codes(self) -> Plane:
        """Where the rounded inputs lie."""
        return replace(self.x, channels=self.padded, pitch=self.padded)

    @property
    def numbers(self) -> Plane:
        """Where their scales lie, and their sums."""
        return replace(self.x, channels=self.blocks, pitch=self.blocks)


# ---------------------------------------------------------------- inputs to codes


def rounded(layer: Gemv, isa: Isa, name: str) -> Any:
    """The function (x, q [rows, padded], s_x [rows, blocks], sum of a block's q [rows, blocks])."""
    k, lanes = Builder(name), isa.lanes
    x = k.argument("x", "float32", layer.x.size)
    codes = k.argument("codes", "int8", layer.codes.size)
    scales = k.argument("scales", "float32", layer.numbers.size)
    sums = k.argument("sums", "int32", layer.numbers.size)
    full, rest = divmod(layer.inputs, layer.block)

    def block(row: Any, index: Any, inputs: int) -> None:
        start = index * layer.block
        given = [k.load(x, row * layer.x.pitch + start + i, lanes) for i in range(0, inputs, lanes)]
        values = [
            k.keep(first(value, inputs - i * lanes, lanes), "float32", lanes) for i, value in enumerate(given)
        ]
        scale = k.keep(largest(k, values, lanes) / tirx.const(127.0, "float32"), "float32", 1)
        divisor = tirx.Select(scale > tirx.const(0.0, "float32"), scale, tirx.const(1.0, "float32"))
        divisor = k.keep(splat(divisor, "float32", lanes), "float32", lanes)
        found = [k.keep(clipped(isa.nearest(value / divisor), lanes), "int32", lanes) for value in values]
        for i in range(0, layer.block, lanes):
            taken = tirx.Cast(f"int8x{lanes}", found[i // lanes]) if i < inputs else splat(0, "int8", lanes)
            k.store(codes, row * layer.padded + start + i, taken, lanes)
        k.store(scales, row * layer.blocks + index, scale)
        k.store(
            sums,
            row * layer.blocks + index,
            across(k, tree(k, found, plus, "int32", lanes), plus, "int32", lanes),
        )

    with k.loop(layer.rows) as r:
        if full:
            with k.loop(full) as b:
                block(r, b, layer.block)
        if rest:
            block(r, full, rest)
    return k.function()


def first(value: Any, count: int, lanes: int) -> Any:
    """The first `count` lanes, zeros behind them."""
    if count >= lanes:
        return value
    return tirx.Select(
        tirx.Ramp(0, 1, lanes) < splat(count, "int32", lanes), value, splat(0.0, "float32", lanes)
    )


def largest(k: Builder, values: list[Any], lanes: int) -> Any:
    """max |x|; without their signs floats are ordered as integers are, and NaN is the largest."""
    bits = [
        k.bind(tirx.op.reinterpret(f"int32x{lanes}", value) & splat(0x7FFFFFFF, "int32", lanes))
        for value in values
    ]
    found = across(k, tree(k, bits, tirx.max, "int32", lanes), tirx.max, "int32", lanes)
    return tirx.op.reinterpret("float32", found)


def clipped(codes: Any, lanes: int) -> Any:
    return tirx.max(tirx.min(codes, splat(127, "int32", lanes)), splat(-128, "int32", lanes))


def plus(a: Any, b: Any) -> Any:
    return a + b


def tree(k: Builder, values: list[Any], join: Any, dtype: str, lanes: int) -> Any:
    """One vector of many, neighbours first."""
    while len(values) > 1:
        pairs = [k.keep(join(a, b), dtype, lanes) for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[len(pairs) * 2 :]
    return values[0]


def across(k: Builder, vector: Any, join: Any, dtype: str, lanes: int) -> Any:
    """One number of a vector: its halves joined until one lane is left."""
    while lanes > 1:
        lanes //= 2
        low, high = (tirx.Shuffle([vector], list(range(start, start + lanes))) for start in (0, lanes))
        vector = k.keep(join(low, high), dtype, lanes)
    return vector


# ---------------------------------------------------------------- codes times codes


def gemv(layer: Gemv, isa: Isa, name: str) -> Any:
    """The function (q, s_x, sums, weights, steps[, zeros][, bias][, residual], y); constants in panels."""
    k, lanes = Builder(name), isa.lanes
    registers = whole(layer.outputs, lanes) // lanes
    columns, rows = registers * lanes, layer.rows
    codes = k.argument("codes", "int8", layer.codes.size)
    scales = k.argument("scales", "float32", layer.numbers.size)
    sums = k.argument("sums", "int32", layer.numbers.size)
    weights = k.argument("weights", "uint8", columns * layer.padded * layer.bits // 8)
    steps = k.argument("steps", layer.scales, columns * layer.steps)
    zeros = k.argument("zeros", "uint8", columns * layer.blocks) if layer.zero is None else None
    bias = k.argument("bias", "float32", columns) if layer.takes_bias else None
    residual = None if layer.residual is None else k.argument("residual", "float32", layer.residual.size)
    y = k.argument("y", "float32", layer.y.size)
    held = Held(codes=codes, scales=scales, sums=sums, weights=weights, steps=steps, zeros=zeros, bias=bias,
                residual=residual, y=y)  # fmt: skip
    for begin, turns, width in cut(registers, COLUMNS):
        with k.loop(turns, shared=True) as panel:
            for row, times, height in cut(rows, ROWS):
                with k.loop(times) as tile:
                    place = Tile(
                        begin=begin + panel * width, columns=width, row=row + tile * height, rows=height
                    )
                    emit(k, layer, isa, held, place)
    return k.function()


def cut(extent: int, size: int) -> list[tuple[int, int, int]]:
    """begin, turns, size: whole pieces, and a smaller one for what is left."""
    full, rest = divmod(extent, size)
    pieces = [(0, full, size), (full * size, 1, rest)]
    return [(begin, turns, width) for begin, turns, width in pieces if turns * width]


@dataclass(frozen=True, kw_only=True)
class Held:
    """The buffers of `gemv`."""

    codes: Any
    scales: Any
    sums: Any
    weights: Any
    steps: Any
    zeros: Any
    bias: Any
    residual: Any
    y: Any


@dataclass(frozen=True, kw_only=True)
class Tile:
    """`columns` registers of outputs from `begin` on, of `rows` rows from `row` on."""

    begin: Any
    columns: int
    row: Any
    rows: int

    @cached_property
    def each(self) -> list[tuple[int, int]]:
        return [(r, j) for r in range(self.rows) for j in range(self.columns)]


def emit(k: Builder, layer: Gemv, isa: Isa, held: Held, tile: Tile) -> None:
    lanes = isa.lanes
    y = {at: k.register("float32", lanes) for at in tile.each}
    for register in y.values():
        k.store(register, 0, splat(0.0, "float32", lanes), lanes)
    with k.loop(layer.blocks) as b:
        sums = block_sums(k, layer, isa, held, tile, b)
        for r, j in tile.each:
            step = splat(k.load(held.scales, (tile.row + r) * layer.blocks + b), "float32", lanes)
            if not layer.per_column:
                at = (tile.begin * layer.blocks + b * tile.columns + j) * lanes
                step = step * tirx.Cast(f"float32x{lanes}", k.load(held.steps, at, lanes))
            total = tirx.Cast(f"float32x{lanes}", sums[r, j])
            k.store(y[r, j], 0, tirx.op.fma(total, step, k.load(y[r, j], 0, lanes)), lanes)
    for r, j in tile.each:
        value, column = k.load(y[r, j], 0, lanes), (tile.begin + j) * lanes
        bias = k.load(held.bias, column, lanes) if layer.takes_bias else None
        if layer.per_column:
            value = tirx.op.fma(tirx.Cast(f"float32x{lanes}", k.load(held.steps, column, lanes)), value, bias)
        elif layer.bias:
            value = value + bias
        if layer.residual is not None:
            value = value + k.load(held.residual, (tile.row + r) * layer.residual.pitch + column, lanes)
        k.store(held.y, (tile.row + r) * layer.y.pitch + column, value, lanes)


def block_sums(
    k: Builder, layer: Gemv, isa: Isa, held: Held, tile: Tile, b: Any
) -> dict[tuple[int, int], Any]:
    """S of one block, by row and register of outputs."""
    lanes, width, parts = isa.lanes, isa.bytes, 8 // layer.bits
    chunk = isa.unit * parts  # inputs in one register of weights
    # A single row has registers to spare: low and high nibbles add up apart. The high ones stay where they
    # are, as 16 u, and only their sum is shifted.
    apart = parts if tile.rows == 1 else 1
    sums = {(r, j, part): k.register("int32", lanes) for r, j in tile.each for part in range(apart)}
    for (r, j, part), register in sums.items():
        codes = splat(k.load(held.sums, (tile.row + r) * layer.blocks + b), "int32", lanes)
        start = splat(0, "int32", lanes) if part else codes * minus_zero(k, layer, held, tile, b, j, lanes)
        k.store(register, 0, start, lanes)
    with k.loop(layer.block // chunk) as c:
        within = b * layer.block + c * chunk
        spread = {
            (r, part): k.keep(
                tirx.op.reinterpret(
                    f"int8x{width}",
                    isa.spread(held.codes, (tile.row + r) * layer.padded + within + part * isa.unit),
                ),
                "int8", width,
            )
            for r in range(tile.rows) for part in range(parts)
        }  # fmt: skip
        for j in range(tile.columns):
            at = (
                tile.begin * (layer.padded // chunk) + (b * (layer.block // chunk) + c) * tile.columns + j
            ) * width
            packed = k.keep(isa.panel(held.weights, at), "uint8", width)
            if layer.rows > 1:  # one row waits for memory anyway, and is faster without
                k.prefetch(held.weights, at + AHEAD)
            codes = [packed]
            if parts == 2:
                words = tirx.op.reinterpret(f"uint32x{lanes}", packed) >> splat(4, "uint32", lanes)
                shifted = tirx.op.reinterpret(f"uint8x{width}", words) & splat(15, "uint8", width)
                high = packed & splat(240, "uint8", width) if apart == 2 else shifted
                codes = [k.keep(u, "uint8", width) for u in (packed & splat(15, "uint8", width), high)]
            for r in range(tile.rows):
                for part, u in enumerate(codes):
                    register = sums[r, j, part % apart]
                    k.store(register, 0, isa.dot(k.load(register, 0, lanes), u, spread[r, part]), lanes)

    def total(r: int, j: int) -> Any:
        low, *high = (k.load(sums[r, j, part], 0, lanes) for part in range(apart))
        return low + (high[0] >> splat(4, "int32", lanes)) if high else low

    return {at: k.keep(total(*at), "int32", lanes) for at in tile.each}


def minus_zero(k: Builder, layer: Gemv, held: Held, tile: Tile, b: Any, j: int, lanes: int) -> Any:
    if layer.zero is not None:
        return splat(-layer.zero, "int32", lanes)
    at = (tile.begin * layer.blocks + b * tile.columns + j) * lanes
    return splat(0, "int32", lanes) - tirx.Cast(f"int32x{lanes}", k.load(held.zeros, at, lanes))


# ---------------------------------------------------------------- constants


def pack(layer: Gemv, codes: NDArray[Any], isa: Isa) -> NDArray[np.uint8]:
    """Codes u [outputs, inputs] in the order in which they are read, zeros where a panel is not full.

    (n, k)  -->  panel n / 64, chunk k / 8, register n / 16 % 4, lane n % 16, byte k % 4, nibble k / 4 % 2
    where two codes share a byte; where each has one, chunks are of 4 and have no nibbles.
    """
    parts, lanes = 8 // layer.bits, isa.lanes
    full = np.zeros((whole(layer.outputs, lanes), layer.padded), np.uint8)
    full[: layer.outputs, : layer.inputs] = codes
    split = full.reshape(len(full), -1, parts, isa.unit)  # column, chunk, part, byte
    joined = sum((split[:, :, part] << (4 * part) for part in range(1, parts)), split[:, :, 0])
    return by_panel(np.asarray(joined, np.uint8), isa)


def by_panel(columns: NDArray[Any], isa: Isa) -> NDArray[Any]:
    """[outputs, b, ..]  -->  panels of [b, register, lane, ..], zeros where the last register is not full."""
    lanes = isa.lanes
    full = np.zeros((whole(len(columns), lanes), *columns.shape[1:]), columns.dtype)
    full[: len(columns)] = columns
    registers = full.reshape(-1, lanes, *columns.shape[1:])
    panels = [
        registers[start : start + COLUMNS].transpose(2, 0, 1, *range(3, registers.ndim)).reshape(-1)
        for start in range(0, len(registers), COLUMNS)
    ]
    return np.concatenate(panels)
