"""`numerics.groupwise.decompress`, in one pass over memory; every number is that of the reference."""

from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, pure, splat
from qcompiler.backends.tvm.training.philox import word
from qcompiler.backends.tvm.training.values import STORED, bfloat16, number, typed, view, widened, within
from qcompiler.numerics.groupwise import GROUP


def recall(bits: int, dtype: str, lanes: int, name: str) -> Any:
    """The function (packed, bounds, count, x, first, last): groups first .. last - 1.

    packed, bounds and x are addresses, count is of elements.
    """
    k = Builder(name)
    packed, bounds, count, x = (k.number(each, "int64") for each in ("packed", "bounds", "count", "x"))
    first, last = k.number("first"), k.number("last")
    with k.loop(last - first) as turn:
        group = k.keep(tirx.Cast("int64", first + turn), "int64", 1)
        there = within(k, count, group)
        codes = view(k, packed, group, "uint8", GROUP * bits // 8)
        both = k.keep(view(k, bounds, group, "uint32", 1)[0], "uint32", 1)
        m = k.keep(widened(both & number(0xFFFF, "uint32")), "float32", 1)
        s = k.keep(widened(both >> number(16, "uint32")), "float32", 1)
        values = view(k, x, group, STORED[dtype])
        with k.only_if(there.equal(GROUP)), k.loop(GROUP // lanes) as i:
            k.store(
                values, i * lanes, restored(k, split(k, codes, i, bits, lanes), m, s, dtype, lanes), lanes
            )
        with k.only_if(there < GROUP), k.loop(there) as i:
            k.store(values, i, restored(k, field(codes, i, bits), m, s, dtype, 1))
    return k.function()


def restored(k: Builder, code: Any, m: Any, s: Any, dtype: str, lanes: int) -> Any:
    """q s + m; TVM lets LLVM fuse the two, which would round once, and so they are fenced off."""
    lowest, scale = (tirx.Broadcast(each, lanes) if lanes > 1 else each for each in (m, s))
    floats = typed("float32", lanes)
    product = pure(floats, "llvm.arithmetic.fence", tirx.Cast(floats, code) * scale)
    value = k.keep(product + lowest, "float32", lanes)
    return value if dtype == "float32" else tirx.Cast(typed("uint16", lanes), bfloat16(value, lanes))


def split(k: Builder, codes: Any, turn: Any, bits: int, lanes: int) -> Any:
    """`lanes` codes as int32: the word that holds them, in every lane, and shifted by lane.

    A lane of 64 bits has the codes of two.
    """
    if bits == 8:
        return tirx.Cast(f"int32x{lanes}", k.load(codes, turn * lanes, lanes))
    size, pairs = lanes * bits // 8, lanes // 2
    taken = tirx.op.reinterpret(f"uint{8 * size}", k.load(codes, turn * size, size))
    spread = tirx.Broadcast(tirx.Cast("uint64", taken), pairs)
    pair = k.keep(spread >> tirx.Ramp(word(0), word(2 * bits), pairs), "uint64", pairs)
    even = pair & splat(word(2**bits - 1), "uint64", pairs)
    odd = (pair << splat(word(32 - bits), "uint64", pairs)) & splat(
        word((2**bits - 1) << 32), "uint64", pairs
    )
    return tirx.op.reinterpret(f"int32x{lanes}", even | odd)


def field(codes: Any, index: Any, bits: int) -> Any:
    """One code."""
    byte = tirx.Cast("int32", codes[tirx.floordiv(index, 8 // bits)])
    return (byte >> (tirx.floormod(index, 8 // bits) * bits)) & number(2**bits - 1, "int32")
