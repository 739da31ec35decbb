"""Floats in their order as whole numbers, bfloat16 as the upper half of float32, and groups in memory."""

from typing import Any

import numpy as np
from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.plain import pointer_to
from qcompiler.numerics.groupwise import GROUP

INFINITY, NAN = 0x7F80_0000, 0x7FC0  # the bits of float32's infinity; of bfloat16's NaN
STORED = {"float32": "float32", "bfloat16": "uint16"}  # as which numbers a type lies in memory


def view(k: Builder, address: Any, index: Any, dtype: str, size: int = GROUP) -> Any:
    """One of the parts, `size` elements each, that lie side by side from an address on; int64 both."""
    begin = address + index * (size * np.dtype(dtype).itemsize)
    return k.view(pointer_to(k.keep(begin, "int64", 1), dtype), dtype, size)


def within(k: Builder, count: Any, group: Any) -> Any:
    """How many elements a group has, of so many altogether."""
    return k.keep(tirx.Cast("int32", tirx.min(count - group * GROUP, number(GROUP, "int64"))), "int32", 1)


def load(k: Builder, buffer: Any, index: Any, lanes: int) -> Any:
    """Elements of a buffer as float32; those of bfloat16 lie there as uint16."""
    found = k.load(buffer, index, lanes)
    if str(buffer.dtype) == "float32":
        return found
    return widened(tirx.Cast(typed("uint32", lanes), found), lanes)


def ordered(x: Any, lanes: int = 1) -> Any:
    """float32 --> int32 in the same order: -NaN, -inf, .., -0, +0, .., +inf, +NaN."""
    return flipped(bits(x, "int32", lanes), lanes)


def unordered(key: Any, lanes: int = 1) -> Any:
    return floats(flipped(key, lanes), lanes)


def flipped(key: Any, lanes: int = 1) -> Any:
    """Negative numbers in the opposite order; its own inverse."""
    return key ^ ((key >> number(31, "int32", lanes)) & number(0x7FFF_FFFF, "int32", lanes))


def bfloat16(x: Any, lanes: int = 1) -> Any:
    """float32 --> the nearest bfloat16, half to even, as uint32."""
    given = bits(x, "uint32", lanes)
    half, one, magnitude = (number(each, "uint32", lanes) for each in (16, 1, 0x7FFF_FFFF))
    rounded = (given + number(0x7FFF, "uint32", lanes) + ((given >> half) & one)) >> half
    is_nan = (given & magnitude) > number(INFINITY, "uint32", lanes)
    return tirx.Select(is_nan, number(NAN, "uint32", lanes), rounded)


def widened(half: Any, lanes: int = 1) -> Any:
    """The float32 of a bfloat16 that is given as uint32."""
    return floats(half << number(16, "uint32", lanes), lanes)


def bits(x: Any, dtype: str, lanes: int) -> Any:
    return tirx.op.reinterpret(typed(dtype, lanes), x)


def floats(x: Any, lanes: int) -> Any:
    return bits(x, "float32", lanes)


def number(value: float, dtype: str, lanes: int = 1) -> Any:
    return splat(value, dtype, lanes) if lanes > 1 else tirx.const(value, dtype)


def typed(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype
