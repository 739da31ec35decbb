"""Ranges of floats taken at run time, and codes on the steps that they give.

extremes         lo[r], hi[r] = min(0, x[r, ..]), max(0, x[r, ..])      lane by lane, in a register each
encode_at_once   s = (max hi - min lo) / 255,  or 1 where that is 0     z = min(rne(-min lo / s), 255)
                 q = sat(rne(x / s) + z)                                true divisions; exact

As ONNX's DynamicQuantizeLinear computes them. Two functions, since threads divide rows, and each needs the
extremes of all of them. Of NaN the codes are anything.
"""

from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.lanes import across
from qcompiler.backends.tvm.kernels.rows import parts, rows, store_steps, vectors
from qcompiler.backends.tvm.plane import NUMBER, Plane

HIGHEST = 255  # code


def extremes_of(x: Plane, isa: Isa) -> Plane:
    """Where the extremes of rows lie: a register of the least, and one of the largest numbers."""
    return Plane(images=1, height=1, width=rows(x), channels=2 * isa.lanes, pitch=2 * isa.lanes)


def extremes(x: Plane, isa: Isa, name: str) -> Any:
    """The function (x, extremes)."""
    k, lanes = Builder(name), isa.lanes
    source = k.argument("x", "float32", x.size)
    found = k.argument("extremes", "float32", extremes_of(x, isa).size)
    with k.loop(rows(x), shared=True) as row:
        least, largest = k.register("float32", lanes), k.register("float32", lanes)
        for register in (least, largest):
            k.store(register, 0, splat(0.0, "float32", lanes), lanes)
        for at, lengths in parts(k, x.channels, lanes):
            for value in vectors(k, source, row * x.pitch + at, lengths, lanes):
                held = k.keep(value, "float32", lanes)
                k.store(least, 0, tirx.min(k.load(least, 0, lanes), held), lanes)
                k.store(largest, 0, tirx.max(k.load(largest, 0, lanes), held), lanes)
        for place, register in enumerate((least, largest)):
            k.store(found, (2 * row + place) * lanes, k.load(register, 0, lanes), lanes)
    return k.function()


def encode_at_once(x: Plane, y: Plane, isa: Isa, name: str) -> Any:
    """The function (x, extremes, q, s, z), on borderless planes of equal pixels."""
    k, lanes = Builder(name), isa.lanes
    source = k.argument("x", "float32", x.size)
    found = k.argument("extremes", "float32", extremes_of(x, isa).size)
    codes = k.argument("q", "uint8", y.size)
    scale = k.argument("scale", "float32", NUMBER.size)
    zero = k.argument("zero", "int32", NUMBER.size)
    lo, hi = whole_range(k, found, rows(x), lanes)
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


def whole_range(k: Builder, found: Any, count: int, lanes: int) -> tuple[Any, Any]:
    """The least and the largest of all rows, in every lane."""
    registers = k.register("float32", lanes), k.register("float32", lanes)
    kinds = tirx.min, tirx.max
    for register in registers:
        k.store(register, 0, splat(0.0, "float32", lanes), lanes)
    with k.loop(count) as row:
        for place, (register, joined) in enumerate(zip(registers, kinds, strict=True)):
            held = k.load(found, (2 * row + place) * lanes, lanes)
            k.store(register, 0, joined(k.load(register, 0, lanes), held), lanes)
    lo, hi = (
        across(k, k.load(register, 0, lanes), "float32", lanes, joined)
        for register, joined in zip(registers, kinds, strict=True)
    )
    return lo, hi
