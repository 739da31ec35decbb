"""Gates of rows: SwiGLU (arXiv 2002.05202) of columns that may lie side by side.

y[r, c] = silu(a[r, c]) b[r, c]        silu(a) = a / (1 + 2^(-a log2(e)))

With u = 2^-24:  |error| <= u |y| (|a| + 8) + 2^-125 |a b|        the last for a below -87
"""

import math
from dataclasses import dataclass
from typing import Any

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.powers import power_of_two
from qcompiler.backends.tvm.kernels.rows import parts, store_floats, vectors
from qcompiler.backends.tvm.plane import Plane


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of a borderless plane from `first` on."""

    plane: Plane
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class Gated:
    """All have as many pixels, each a row; y has as many columns as are read of a and b."""

    a: Columns
    b: Columns
    y: Plane


def gated(layer: Gated, isa: Isa, name: str) -> Any:
    """The function (a, b, y); a and b may be the same memory."""
    k, lanes = Builder(name), isa.lanes
    a = k.argument("a", "float32", layer.a.plane.size)
    b = k.argument("b", "float32", layer.b.plane.size)
    y = k.argument("y", "float32", layer.y.size)
    one, factor = splat(1.0, "float32", lanes), splat(-math.log2(math.e), "float32", lanes)
    with k.loop(layer.y.images * layer.y.height * layer.y.width) as row:
        for at, lengths in parts(k, layer.y.channels, lanes):
            sides = [
                [k.keep(value, "float32", lanes) for value in vectors(k, buffer, place, lengths, lanes)]
                for buffer, place in (
                    (a, row * layer.a.plane.pitch + layer.a.first + at),
                    (b, row * layer.b.plane.pitch + layer.b.first + at),
                )
            ]
            results = []
            for gate, value in zip(*sides, strict=True):
                power = k.keep(power_of_two(k, gate * factor, lanes), "float32", lanes)
                results.append(k.keep(gate / (one + power) * value, "float32", lanes))
            store_floats(k, y, row * layer.y.pitch + at, results, lengths, lanes)
    return k.function()
