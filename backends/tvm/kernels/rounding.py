"""Rows of floats as signed codes, in blocks whose scales are taken from what they hold.

    s[r, b] = max |x[r, b]| / 127        q[r, k] = sat(rne(x[r, k] / s[r, b]))        a true division
    sums[r, b] = sum over k of block b of q[r, k]

What computes a row rounds it as well, while it lies in the first cache; `rounded` is for rows that come from
elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.lanes import lowest, plus, tree
from qcompiler.backends.tvm.plane import Plane


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Codes of x, each row a pixel of a borderless plane; `block` inputs, a multiple of 16, share a scale."""

    x: Plane
    block: int

    @property
    def rows(self) -> int:
        return self.x.images * self.x.height * self.x.width

    @property
    def inputs(self) -> int:
        return self.x.channels

    @property
    def blocks(self) -> int:
        return -(-self.inputs // self.block)

    @property
    def padded(self) -> int:
        """Inputs in whole blocks."""
        return self.blocks * self.block

    @property
    def codes(self) -> Plane:
        """Where the codes lie."""
        return replace(self.x, channels=self.padded, pitch=self.padded)

    @property
    def numbers(self) -> Plane:
        """Where their scales lie, and their sums."""
        return replace(self.x, channels=self.blocks, pitch=self.blocks)

    @property
    def planes(self) -> tuple[tuple[Plane, str], ...]:
        """Where codes, scales and sums lie, and what they are."""
        return (self.codes, "int8"), (self.numbers, "float32"), (self.numbers, "int32")


def rounded(layer: Rounding, isa: Isa, name: str) -> Any:
    """The function (x, q [rows, padded], s [rows, blocks], sums [rows, blocks])."""
    k = Builder(name)
    x = k.argument("x", "float32", layer.x.size)
    round_row = rounder(k, isa, layer, x)
    with k.loop(layer.rows, shared=True) as row:
        round_row(row)
    return k.function()


def rounder(k: Builder, isa: Isa, layer: Rounding, x: Any) -> Callable[[Any], None]:
    """What rounds a row of x that is written; q, s and sums become arguments here."""
    lanes = isa.lanes
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
            lowest(k, tree(k, found, plus, "int32", lanes), plus, "int32", lanes),
        )

    def round_row(row: Any) -> None:
        if full:
            with k.loop(full) as b:
                block(row, b, layer.block)
        if rest:
            block(row, full, rest)

    return round_row


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
    found = lowest(k, tree(k, bits, tirx.max, "int32", lanes), tirx.max, "int32", lanes)
    return tirx.op.reinterpret("float32", found)


def clipped(codes: Any, lanes: int) -> Any:
    return tirx.max(tirx.min(codes, splat(127, "int32", lanes)), splat(-128, "int32", lanes))
