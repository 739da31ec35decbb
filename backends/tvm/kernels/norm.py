"""Norms of rows of floats, and their codes, in one pass over memory.

layer norm    y = (x - m) r g + b        m = sum(x) / C,  r = 1 / sqrt(sum((x - m)^2) / C + e)
RMS norm      y = x r g                  r = 1 / sqrt(sum(x^2) / C + e)
encode_rows   y = x
codes         q = sat(rne(y / s) + z)    a true division, as everywhere; exact given y

A row stays in the first cache while it is read for the mean, for the squares around it (the variance in two
passes), and for the result. Bound, against float64, for rows of 1 to 5000 numbers with a mean of up to 100
deviations (measured: 2.6 where the 4 stands; torch's own float32 comes as far):

    |error| <= 4 (|g| (1 + max|x| r) + |b|) 2^-24
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.lanes import total
from qcompiler.backends.tvm.kernels.rows import (
    TOGETHER,
    parts,
    results,
    rows,
    vectors,
    widened,
)
from qcompiler.backends.tvm.plane import Plane

Floats = list[Any]


@dataclass(frozen=True, kw_only=True)
class Norm:
    """One layer on borderless planes of equal pixels; each pixel is a row, whatever its pitch.

    x: float32. floats: where y goes, codes: where q goes; None: not wanted. block: numbers of a block in
    which y is rounded as well (`rounding.py`), or 0. ranged: whether the extremes of y are wanted
    (`extremes.py`). centered: around the mean of the row. bias: whether b is added.
    """

    x: Plane
    floats: Plane | None = None
    codes: Plane | None = None
    block: int = 0
    ranged: bool = False
    centered: bool = True
    bias: bool = True
    epsilon: float = 1e-5


def norm(layer: Norm, isa: Isa, name: str) -> Any:
    """The function (x, gain [C], [bias [C],] [s of codes, z of codes,] [y,] [q,] [codes, scales, sums,]
    [extremes]).
    """
    k, lanes, channels = Builder(name), isa.lanes, layer.x.channels
    x = k.argument("x", "float32", layer.x.size)
    gain = k.argument("gain", "float32", channels)
    bias = k.argument("bias", "float32", channels) if layer.bias else None
    result = results(k, isa, layer.floats, layer.codes, layer.block, layer.ranged)
    with k.loop(rows(layer.x), shared=True) as row:
        begin = row * layer.x.pitch
        middle = None
        if layer.centered:
            sums = registers(k, lanes)
            for at, lengths in parts(k, channels, lanes):
                for j, value in enumerate(vectors(k, x, begin + at, lengths, lanes)):
                    k.store(sums[j], 0, k.load(sums[j], 0, lanes) + value, lanes)
            middle = k.keep(
                total(k, sums, lanes) / splat(float(channels), "float32", lanes), "float32", lanes
            )
        squares = registers(k, lanes)
        for at, lengths in parts(k, channels, lanes):
            for j, value in enumerate(around(k, x, begin + at, lengths, lanes, middle)):
                register = k.load(squares[j], 0, lanes)
                k.store(squares[j], 0, tirx.op.fma(value, value, register), lanes)
        variance = total(k, squares, lanes) / splat(float(channels), "float32", lanes)
        deviation = tirx.op.sqrt(variance + splat(layer.epsilon, "float32", lanes))
        ratio = k.keep(splat(1.0, "float32", lanes) / deviation, "float32", lanes)
        for at, lengths in parts(k, channels, lanes):
            values = [value * ratio for value in around(k, x, begin + at, lengths, lanes, middle)]
            gains = vectors(k, gain, at, lengths, lanes)
            if bias is None:
                values = [value * g for value, g in zip(values, gains, strict=True)]
            else:
                offsets = vectors(k, bias, at, lengths, lanes)
                values = [tirx.op.fma(*three) for three in zip(values, gains, offsets, strict=True)]
            result.part(row, at, values, lengths)
        result.end(row)
    return k.function()


def encode_rows(x: Plane, y: Plane, isa: Isa, name: str) -> Any:
    """The function (x, [s], [z], y): rows of floats to codes, on borderless planes of equal pixels."""
    k = Builder(name)
    source = k.argument("x", "float32", x.size)
    result = results(k, isa, None, y)
    with k.loop(rows(x), shared=True) as row:
        for at, lengths in parts(k, x.channels, isa.lanes):
            result.part(row, at, vectors(k, source, row * x.pitch + at, lengths, isa.lanes), lengths)
    return k.function()


def registers(k: Builder, lanes: int) -> list[Any]:
    """Sums, zero at first."""
    made = [k.register("float32", lanes) for _ in range(TOGETHER)]
    for register in made:
        k.store(register, 0, splat(0.0, "float32", lanes), lanes)
    return made


def around(k: Builder, x: Any, at: Any, lengths: list[int], lanes: int, middle: Any | None) -> Floats:
    """A part of a row minus its mean; the zeros behind a row stay zeros."""
    if middle is None:
        return vectors(k, x, at, lengths, lanes)
    found = []
    for j, length in enumerate(lengths):
        mean = middle if length == lanes else tirx.Shuffle([middle], list(range(length)))
        apart = k.bind(k.load(x, at + j * lanes, length) - mean)
        found.append(widened(apart, length, lanes))
    return [k.bind(value) for value in found]
