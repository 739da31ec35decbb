"""Linears of float inputs whose weights are codes of few bits: what a step of a decoder is made of.

    q[r, k], s_x[r, b] = codes and scales of blocks of x                           `rounding.py`
    S[r, b, n] = sum over k of block b of q[r, k] (u[n, k] - z[n, b])              int32, exact
    y[r, n]    = fma(S[r, b, n], s_x[r, b] s_w[n, b], y[r, n])   for b = 0, 1, ..  `gemv`
    then + bias[n]; or, where a column has one scale,
    y[r, n]    = fma(s_w[n], fma(S[r, b, n], s_x[r, b], ..), bias[n])
    then + residual[r, n]

Codes u are unsigned, since a vector multiplication takes those beside signed ones: a signed format is shifted
by its zero point (8 for 4 bits, 128 for 8), and -z times the sum of a block's q is where S begins. Weights
lie in the order in which they are read, once, as fast as the memory gives them: of the registers of outputs
that are computed together, each reads on at a place of its own, since memory gives more to several streams
that are far apart than to one.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.rounding import Rounding
from qcompiler.backends.tvm.kernels.strips import whole
from qcompiler.backends.tvm.plane import Plane

COLUMNS = 4  # registers of outputs in a tile, and streams of weights
ROWS = 4  # of a tile: with COLUMNS, sums fill 16 registers
STREAMS = 2  # of a single row, which only reads: one takes a tenth longer, and more than two no less
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
    def rounding(self) -> Rounding:
        return Rounding(x=self.x, block=self.block)

    @property
    def rows(self) -> int:
        return self.rounding.rows

    @property
    def inputs(self) -> int:
        return self.rounding.inputs

    @property
    def outputs(self) -> int:
        return self.y.channels

    @property
    def blocks(self) -> int:
        return self.rounding.blocks

    @property
    def padded(self) -> int:
        return self.rounding.padded

    @property
    def steps(self) -> int:
        """Scales of a column."""
        return 1 if self.per_column else self.blocks

    @property
    def takes_bias(self) -> bool:
        """LLVM fuses a product with a sum behind it; so that it is always this one, it may be of zeros."""
        return self.bias or self.per_column


# ---------------------------------------------------------------- codes times codes


def gemv(layer: Gemv, isa: Isa, name: str) -> Any:
    """The function (q, s_x, sums, count, weights, steps[, zeros][, bias][, residual], y).

    Constants by register, and `count`, the number of blocks, which LLVM shall not know: it makes a few blocks
    straight code, keeps all codes of x at hand in more registers than there are, and takes twice as long.
    """
    k, lanes = Builder(name), isa.lanes
    registers = whole(layer.outputs, lanes) // lanes
    columns, rows = registers * lanes, layer.rows
    codes = k.argument("codes", "int8", layer.rounding.codes.size)
    scales = k.argument("scales", "float32", layer.rounding.numbers.size)
    sums = k.argument("sums", "int32", layer.rounding.numbers.size)
    count = k.argument("count", "int32", 1)
    weights = k.argument("weights", "uint8", columns * layer.padded * layer.bits // 8)
    steps = k.argument("steps", layer.scales, columns * layer.steps)
    zeros = k.argument("zeros", "uint8", columns * layer.blocks) if layer.zero is None else None
    bias = k.argument("bias", "float32", columns) if layer.takes_bias else None
    residual = None if layer.residual is None else k.argument("residual", "float32", layer.residual.size)
    y = k.argument("y", "float32", layer.y.size)
    blocks = k.bind(k.load(count, 0)) if layer.blocks > 1 else 1
    held = Held(codes=codes, scales=scales, sums=sums, weights=weights, steps=steps, zeros=zeros, bias=bias,
                residual=residual, y=y, blocks=blocks)  # fmt: skip
    for begin, turns, width in cut(registers, COLUMNS if rows > 1 else STREAMS):
        with k.loop(turns, shared=True) as turn:
            for row, times, height in cut(rows, ROWS):
                with k.loop(times) as tile:
                    outputs = tuple(begin + turn + j * turns for j in range(width))
                    place = Tile(registers=outputs, row=row + tile * height, rows=height)
                    emit(k, layer, isa, held, place)
    return k.function()


def cut(extent: int, size: int) -> list[tuple[int, int, int]]:
    """begin, turns, size: whole pieces, and a smaller one for what is left."""
    full, rest = divmod(extent, size)
    pieces = [(0, full, size), (full * size, 1, rest)]
    return [(begin, turns, width) for begin, turns, width in pieces if turns * width]


@dataclass(frozen=True, kw_only=True)
class Held:
    """The buffers of `gemv`, and how many blocks a column has."""

    codes: Any
    scales: Any
    sums: Any
    weights: Any
    steps: Any
    zeros: Any
    bias: Any
    residual: Any
    y: Any
    blocks: Any


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Some registers of outputs, by number, of `rows` rows from `row` on."""

    registers: tuple[Any, ...]
    row: Any
    rows: int

    @cached_property
    def each(self) -> list[tuple[int, int]]:
        return [(r, j) for r in range(self.rows) for j in range(len(self.registers))]


def emit(k: Builder, layer: Gemv, isa: Isa, held: Held, tile: Tile) -> None:
    lanes = isa.lanes
    y = {at: k.register("float32", lanes) for at in tile.each}
    for register in y.values():
        k.store(register, 0, splat(0.0, "float32", lanes), lanes)
    with k.loop(held.blocks, turns=layer.blocks) as b:
        sums = block_sums(k, layer, isa, held, tile, b)
        for r, j in tile.each:
            step = splat(k.load(held.scales, (tile.row + r) * layer.blocks + b), "float32", lanes)
            if not layer.per_column:
                at = (tile.registers[j] * layer.blocks + b) * lanes
                step = step * tirx.Cast(f"float32x{lanes}", k.load(held.steps, at, lanes))
            total = tirx.Cast(f"float32x{lanes}", sums[r, j])
            k.store(y[r, j], 0, tirx.op.fma(total, step, k.load(y[r, j], 0, lanes)), lanes)
    for r, j in tile.each:
        value, column = k.load(y[r, j], 0, lanes), tile.registers[j] * lanes
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
        for j, outputs in enumerate(tile.registers):
            at = (outputs * (layer.padded // chunk) + b * (layer.block // chunk) + c) * width
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
    at = (tile.registers[j] * layer.blocks + b) * lanes
    return splat(0, "int32", lanes) - tirx.Cast(f"int32x{lanes}", k.load(held.zeros, at, lanes))


# ---------------------------------------------------------------- constants


def pack(layer: Gemv, codes: NDArray[Any], isa: Isa) -> NDArray[np.uint8]:
    """Codes u [outputs, inputs] in the order in which they are read, zeros where a register is not full.

    (n, k)  -->  register n / 16, chunk k / 8, lane n % 16, byte k % 4, nibble k / 4 % 2
    where two codes share a byte; where each has one, chunks are of 4 and have no nibbles.
    """
    parts, lanes = 8 // layer.bits, isa.lanes
    full = np.zeros((whole(layer.outputs, lanes), layer.padded), np.uint8)
    full[: layer.outputs, : layer.inputs] = codes
    split = full.reshape(len(full), -1, parts, isa.unit)  # column, chunk, part, byte
    joined = sum((split[:, :, part] << (4 * part) for part in range(1, parts)), split[:, :, 0])
    return by_register(np.asarray(joined, np.uint8), isa)


def by_register(columns: NDArray[Any], isa: Isa) -> NDArray[Any]:
    """[outputs, b, ..]  -->  [register, b, lane, ..], zeros where the last register is not full."""
    lanes = isa.lanes
    full = np.zeros((whole(len(columns), lanes), *columns.shape[1:]), columns.dtype)
    full[: len(columns)] = columns
    return np.ascontiguousarray(full.reshape(-1, lanes, *columns.shape[1:]).swapaxes(1, 2)).reshape(-1)
