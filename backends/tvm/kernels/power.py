"""2^u of vectors of float32, without a table: 2^u = 2^n P(u - n), n = rne(u).

The multiply-adds of P and every other step are those of float32, so a result can be computed again anywhere.
"""

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat

ROUNDER = 1.5 * 2**23  # u + ROUNDER - ROUNDER = rne(u), and the sum's last bits are that integer
MANTISSA = 23  # bits behind which a float's exponent begins


def power_of_two(k: Builder, u: Any, lanes: int, coefficients: Sequence[float]) -> Any:
    """-126 <= u <= 127, which has a register; `coefficients` of P on [-1/2, 1/2], the lowest first."""
    moved = k.keep(u + splat(ROUNDER, "float32", lanes), "float32", lanes)
    rest = k.keep(u - (moved - splat(ROUNDER, "float32", lanes)), "float32", lanes)
    result = splat(coefficients[-1], "float32", lanes)
    for coefficient in coefficients[-2::-1]:
        result = tirx.op.fma(result, rest, splat(coefficient, "float32", lanes))
    bits, whole = (tirx.op.reinterpret(f"int32x{lanes}", value) for value in (result, moved))
    return tirx.op.reinterpret(f"float32x{lanes}", bits + (whole << splat(MANTISSA, "int32", lanes)))
