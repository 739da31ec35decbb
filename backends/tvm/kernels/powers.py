"""Powers of two of float32 vectors.

2^x = 2^n p(x - n)        n = rne(x), p of degree 6 on [-1/2, 1/2]; relative error at most 3 2^-24

Beyond 2^-126 and 2^126, the powers are those.
"""

from functools import reduce
from typing import Any

import numpy as np
from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat

FARTHEST = 126.0  # beyond it powers of two are no normal numbers
ROUNDER = 1.5 * 2**23  # x + ROUNDER - ROUNDER = rne(x), and the sum's last bits are that integer
MANTISSA = 23  # bits behind which a float's exponent begins
DEGREE = 6


def power_of_two(k: Builder, exponent: Any, lanes: int) -> Any:
    """2^x: the integer of a rounded sum is added to the exponent of a polynomial's value."""
    lowest, highest = (splat(end, "float32", lanes) for end in (-FARTHEST, FARTHEST))
    raised = k.keep(tirx.min(tirx.max(exponent, lowest), highest), "float32", lanes)
    moved = k.keep(raised + splat(ROUNDER, "float32", lanes), "float32", lanes)
    rest = k.keep(raised - (moved - splat(ROUNDER, "float32", lanes)), "float32", lanes)
    first, *others = (splat(float(c), "float32", lanes) for c in reversed(COEFFICIENTS))
    result = k.keep(reduce(lambda value, c: tirx.op.fma(value, rest, c), others, first), "float32", lanes)
    bits, steps = (tirx.op.reinterpret(f"int32x{lanes}", value) for value in (result, moved))
    shifted = bits + (steps << splat(MANTISSA, "int32", lanes))
    return tirx.op.reinterpret(f"float32x{lanes}", shifted)


def polynomial() -> list[float]:
    """2^r on [-1/2, 1/2] at Chebyshev's points."""
    points = 0.5 * np.cos((2 * np.arange(64) + 1) * np.pi / 128)
    fitted = np.polynomial.chebyshev.Chebyshev.fit(points, 2.0**points, DEGREE, domain=[-0.5, 0.5])
    return [float(c) for c in fitted.convert(kind=np.polynomial.Polynomial).coef]


COEFFICIENTS = polynomial()
