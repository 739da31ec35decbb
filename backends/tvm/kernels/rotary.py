"""Rotary position embedding of rows of floats, and its codes.

    y[t, i] = fma(x[t, j], -sin[t, i], float32(x[t, i] cos[t, i]))
    y[t, j] = fma(x[t, i], sin[t, i], float32(x[t, j] cos[t, i]))      i < D / 2, j = i + D / 2, in every head
    q = sat(rne(y / s) + z)

The multiply-add is written, since LLVM would make one of a product and a sum anyway. Torch rounds once more:
|y - torch's| <= (|x[t, i] cos| + |x[t, j] sin|) 2^-23.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.rows import parts, results, rows, vectors
from qcompiler.backends.tvm.plane import Plane


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """One layer on borderless planes, a token a pixel; token r of x is at position r mod `positions`.

    x: float32, head h has `width` channels from `first` + h width on; floats and codes (None: not wanted)
    have heads side by side. pitch: numbers from one position to the next in the tables of cosines and sines.
    """

    x: Plane
    heads: int
    width: int
    positions: int
    pitch: int
    first: int = 0
    floats: Plane | None = None
    codes: Plane | None = None


def rotary(layer: Rotary, isa: Isa, name: str) -> Any:
    """The function (x, cosines, sines, [s of codes, z of codes,] [y,] [q])."""
    k, lanes, half = Builder(name), isa.lanes, layer.width // 2
    x = k.argument("x", "float32", layer.x.size)
    tables = [k.argument(name, "float32", layer.positions * layer.pitch) for name in ("cosines", "sines")]
    result = results(k, isa, layer.floats, layer.codes)
    with k.loop(rows(layer.x) // layer.positions) as sequence, k.loop(layer.positions, shared=True) as t:
        row = sequence * layer.positions + t
        for at, lengths in parts(k, half, lanes):
            cosines, sines = (kept(k, table, t * layer.pitch + at, lengths, lanes) for table in tables)
            minus = [k.keep(splat(0.0, "float32", lanes) - s, "float32", lanes) for s in sines]
            with k.loop(layer.heads) as head:
                begin = row * layer.x.pitch + layer.first + head * layer.width + at
                low, high = (kept(k, x, begin + more, lengths, lanes) for more in (0, half))
                turned = [
                    [tirx.op.fma(b, s, a * c) for a, b, c, s in zip(low, high, cosines, minus, strict=True)],
                    [tirx.op.fma(a, s, b * c) for a, b, c, s in zip(low, high, cosines, sines, strict=True)],
                ]
                for more, values in zip((0, half), turned, strict=True):
                    result.part(row, head * layer.width + at + more, values, lengths)
    return k.function()


def kept(k: Builder, buffer: Any, at: Any, lengths: list[int], lanes: int) -> list[Any]:
    return [k.keep(value, "float32", lanes) for value in vectors(k, buffer, at, lengths, lanes)]
