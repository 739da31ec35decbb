"""Ranges of floats taken at run time, and codes on the steps that they give.

extremes         lo[r], hi[r] = min(0, x[r, ..]), max(0, x[r, ..])      where no kernel found them before
encode_at_once   s = (max hi - min lo) / 255,  or 1 where that is 0     z = min(rne(-min lo / s), 255)
                 q = sat(rne(x / s) + z)                                true divisions; exact

As ONNX's DynamicQuantizeLinear computes them. Two functions, since threads divide rows, and each needs the
extremes of all of them. Of NaN the codes are anything.
"""

from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.extremes import Extremes, extremes_of, whole_range
from qcompiler.backends.tvm.kernels.rows import parts, rows, store_steps, vectors
from qcompiler.backends.tvm.plane import NUMBER, Plane

HIGHEST = 255  # code


def extremes(x: Plane, isa: Isa, name: str) -> Any:
    """The function (x, extremes)."""
    k, lanes = Builder(name), isa.lanes
    source = k.argument("x", "float32", x.size)
    found = Extremes(k, isa, rows(x))
    with k.loop(rows(x), shared=True) as row:
        for at, lengths in parts(k, x.channels, lanes):
            values = vectors(k, source, row * x.pitch + at, lengths, lanes)
            found.see([k.keep(value, "float32", lanes) for value in values])
        found.end(row)
    return k.function()


def encode_at_once(x: Plane, y: Plane, turns: int, isa: Isa, name: str) -> Any:
    """The function (x, extremes of `turns`, q, s, z), on borderless planes of equal pixels."""
    k, lanes = Builder(name), isa.lanes
    source = k.argument("x", "float32", x.size)
    found = k.argument("extremes", "float32", extremes_of(turns, isa).size)
    codes = k.argument("q", "uint8", y.size)
    scale = k.argument("scale", "float32", NUMBER.size)
    zero = k.argument("zero", "int32", NUMBER.size)
    lo, hi = whole_range(k, found, turns, lanes)
    share = k.keep((hi - lo) / splat(float(HIGHEST), "float32", lanes), "float32", lanes)
    one, nothing = splat(1.0, "float32", lanes), splat(0.0, "float32", lanes)
    step = k.keep(tirx.Select(share > nothing, share, one), "float32", lanes)
    middle = tirx.min(isa.nearest(k.bind((nothing - lo) / step)), splat(HIGHEST, "int32", lanes))
    # Every thread writes them, and the same.
    k.store(scale, 0, tirx.Shuffle([step], [0]))
    k.store(zero, 0, tirx.Shuffle([k.keep(middle, "int32", lanes)], [0]))
    with k.loop(rows(x), shared=True) as row:
        for at, lengths in parts(k, x.channels, lanes):
            values = vectors(k, source, row * x.pitch + at, lengths, lanes)
            steps = [k.keep(value, "float32", lanes) / step for value in values]
            store_steps(k, isa, codes, row * y.pitch + at, steps, k.load(zero, 0), sum(lengths))
    return k.function()
