"""`numerics.philox.uniform`, written once to memory."""

from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.plain import pointer_to
from qcompiler.backends.tvm.training.philox import WAYS, WORDS, fractions, stream
from qcompiler.backends.tvm.training.values import view

TOGETHER = 256  # elements that a turn makes


def draws(lanes: int, name: str) -> Any:
    """The function (key, tensor, purpose, start, values, first, last): parts first .. last - 1 of values.

    A part has 256 elements, part 0 those from 256 * start on; key and values are addresses.
    """
    k = Builder(name)
    key, tensor, purpose, start, values = (
        k.number(each, "int64") for each in ("key", "tensor", "purpose", "start", "values")
    )
    first, last = k.number("first"), k.number("last")
    given = stream(k, k.view(pointer_to(key, "int64"), "int64", 3), tensor, purpose)
    together = WAYS * 2 * lanes
    with k.loop(last - first) as turn:
        part = k.keep(tirx.Cast("int64", first + turn), "int64", 1)
        found = view(k, values, part, "float32", TOGETHER)
        with k.loop(TOGETHER // together) as i:
            at = (start + part) * TOGETHER + tirx.Cast("int64", i * together)
            block = tirx.Cast("uint64", at >> tirx.const(WORDS.bit_length() - 1, "int64"))
            for place, drawn in enumerate(fractions(k, given, block, lanes)):
                value = tirx.Cast(f"float32x{lanes}", drawn) * splat(2.0**-24, "float32", lanes)
                k.store(found, i * together + place * lanes, value, lanes)
    return k.function()
