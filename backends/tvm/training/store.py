"""`numerics.groupwise.compress` with its draws, in one pass over memory.

Group by group: extremes, bounds, codes with their draws, and those together in bytes. Every number is that of
the reference, to the last bit.
"""

from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.kernels.lanes import lowest, tree
from qcompiler.backends.tvm.plain import pointer_to
from qcompiler.backends.tvm.training.philox import WAYS, WORDS, Stream, fractions, stream
from qcompiler.backends.tvm.training.values import (
    INFINITY,
    NAN,
    STORED,
    bfloat16,
    flipped,
    load,
    number,
    ordered,
    unordered,
    view,
    widened,
    within,
)
from qcompiler.numerics.groupwise import GROUP
from qcompiler.numerics.packing import WIDE
from qcompiler.numerics.philox import Purpose

AT_ONCE = 4  # registers that take extremes in turn, so that none waits for the one before
MINUS_INFINITY = INFINITY - 2**31  # its bits, as int32


def store(bits: int, dtype: str, lanes: int, name: str) -> Any:
    """The function (x, end, count, key, tensor, packed, bounds, first, last): groups first .. last - 1.

    x, end, key, packed and bounds are addresses, count is of elements. A last group that is not full is read
    at `end`, filled up with its last element.
    """
    k = Builder(name)
    x, end, count, key, tensor, packed, bounds = (
        k.number(each, "int64") for each in ("x", "end", "count", "key", "tensor", "packed", "bounds")
    )
    first, last = k.number("first"), k.number("last")
    purpose = number(int(Purpose.SAVED_ACTIVATION), "int64")
    given = stream(k, k.view(pointer_to(key, "int64"), "int64", 3), tensor, purpose)
    codes = k.scratch("uint8", GROUP)
    with k.loop(last - first) as turn:
        group = k.keep(tirx.Cast("int64", first + turn), "int64", 1)
        there = within(k, count, group)
        begin, place = (tirx.Select(there < GROUP, *two) for two in ((end, x), (number(0, "int64"), group)))
        values = view(k, begin, place, STORED[dtype])
        m, s = outward(k, *extremes(k, values, lanes), 2**bits - 1)
        k.store(view(k, bounds, group, "uint32", 1), 0, m | s << number(16, "uint32"))
        encode(k, values, (widened(m), widened(s)), given, group, codes, lanes)
        with k.only_if(there < GROUP), k.loop(GROUP - there) as i:
            k.store(codes, there + i, codes[there - 1])
        join(k, codes, view(k, packed, group, "uint8", GROUP * bits // 8), bits, lanes)
    return k.function()


def extremes(k: Builder, values: Any, lanes: int) -> tuple[Any, Any]:
    """Minimum and maximum as ordered whole numbers, among which NaN lies at an end."""
    found = []
    turns = range(GROUP // lanes)
    keys = [k.keep(ordered(load(k, values, i * lanes, lanes), lanes), "int32", lanes) for i in turns]
    for join in (tirx.min, tirx.max):
        held = keys[:AT_ONCE]
        for i, key in enumerate(keys[AT_ONCE:]):
            held[i % AT_ONCE] = k.keep(join(held[i % AT_ONCE], key), "int32", lanes)
        found.append(lowest(k, tree(k, held, join, "int32", lanes), join, "int32", lanes))
    return found[0], found[1]


def outward(k: Builder, low: Any, high: Any, steps: int) -> tuple[Any, Any]:
    """(m, s), bfloat16 as uint32, of extremes as ordered whole numbers: m <= low, m + s * steps >= high.

    Both are NaN where an element is. The sign of a zero is dropped.
    """
    below, beyond = low < flipped(number(MINUS_INFINITY, "int32")), high > number(INFINITY, "int32")
    has_nan = k.keep(tirx.Cast("int32", tirx.any(below, beyond)), "int32", 1)
    lowest, highest = (
        k.keep(unordered(tirx.Select(each.equal(-1), number(0, "int32"), each)), "float32", 1)
        for each in (low, high)
    )
    near, one = k.keep(bfloat16(lowest), "uint32", 1), number(1, "uint32")
    lower = tirx.Select(near >= number(0x8000, "uint32"), near + one, near - one)
    m = k.keep(tirx.Select(widened(near) > lowest, lower, near), "uint32", 1)
    span, count = k.keep(highest - widened(m), "float32", 1), number(float(steps), "float32")
    near = k.keep(bfloat16(span / count), "uint32", 1)
    s = tirx.Select(widened(near) * count < span, near + one, near)
    return k.keep(either(has_nan, m), "uint32", 1), k.keep(either(has_nan, s), "uint32", 1)


def either(has_nan: Any, bound: Any) -> Any:
    return tirx.Select(has_nan > 0, number(NAN, "uint32"), bound)


def encode(
    k: Builder, values: Any, bounds: tuple[Any, Any], given: Stream, group: Any, codes: Any, lanes: int
) -> None:
    """q = floor(t) + [u < t - floor(t)], t = (x - m) / s, in bytes; both sides of < in units of 2^-24."""
    m, s = (k.keep(splat(each, "float32", lanes), "float32", lanes) for each in bounds)
    zero, one = splat(0.0, "float32", lanes), splat(1, "int32", lanes)
    together = WAYS * 2 * lanes
    with k.loop(GROUP // together) as turn:
        block = group * (GROUP // WORDS) + tirx.Cast("int64", turn * (together // WORDS))
        for i, drawn in enumerate(fractions(k, given, tirx.Cast("uint64", block), lanes)):
            at = turn * together + i * lanes
            t = k.keep(
                tirx.max((load(k, values, at, lanes) - m) / s, zero), "float32", lanes
            )  # NaN: 0, as 0 / 0
            floor = k.keep(tirx.Cast(f"int32x{lanes}", t), "int32", lanes)
            rest = (t - tirx.Cast(f"float32x{lanes}", floor)) * splat(2.0**24, "float32", lanes)
            code = tirx.Select(tirx.Cast(f"float32x{lanes}", drawn) < rest, floor + one, floor)
            k.store(codes, at, tirx.Cast(f"uint8x{lanes}", code), lanes)


def join(k: Builder, codes: Any, packed: Any, bits: int, lanes: int) -> None:
    """`numerics.packing.join`: neighbours first, then pairs of them; the lowest byte of each word."""
    together, per_byte = 4 * lanes, 8 // bits
    kind, words = f"uint{8 * per_byte}", together // per_byte
    for start in range(0, GROUP, together):
        value = tirx.op.reinterpret(f"{kind}x{words}", k.load(codes, start, together))
        for shift, _ in WIDE[bits][1]:
            value = k.keep(value | (value >> splat(shift, kind, words)), kind, words)
        k.store(packed, start // per_byte, tirx.Cast(f"uint8x{words}", value), words)
