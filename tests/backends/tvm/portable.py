"""A set of no machine: registers of 16 bytes as ARM has them, in plain arithmetic that runs on every CPU.

What the kernels make of four lanes is proven with it, where there is no ARM to run on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import splat
from qcompiler.backends.tvm.isa import NEON_DOT, Processor

LOWEST = -(2**31)


def dot(accumulator: Any, a: Any, w: Any) -> Any:
    for u in range(4):
        taken = list(range(u, 16, 4))
        codes, weights = (tirx.Cast("int32x4", tirx.Shuffle([each], taken)) for each in (a, w))
        accumulator = accumulator + codes * weights
    return accumulator


def nearest(x: Any) -> Any:
    """What is too low, and NaN, is set first: a conversion of it is undefined."""
    low = splat(float(LOWEST), "float32", 4)
    return tirx.Cast("int32x4", tirx.op.nearbyint(tirx.Select(x >= low, x, low)))


def narrow(four: list[Any]) -> Any:
    steps = tirx.Shuffle(four, list(range(16)))
    clipped = tirx.max(tirx.min(steps, splat(255, "int32", 16)), splat(0, "int32", 16))
    return tirx.Cast("uint8x16", clipped)


PORTABLE = replace(
    NEON_DOT, name="portable", processor=Processor(name="x86-64-v3"), dot=dot, nearest=nearest, narrow=narrow
)
