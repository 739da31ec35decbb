"""Functions of one number that are no instruction: as arithmetic, which LLVM makes vectors of, or by name.

    exp    2^n P(x - n ln 2), n = rne(x / ln 2)       |x - n ln 2| <= ln(2) / 2     2 ulp
    tanh   x + x^3 P(x^2) below 0.625, else 1 - 2 / (e^2x + 1)                      3 ulp
    erf    x P(x^2) / Q(x^2), |x| cut to 4                                          6e-7

Coefficients of exp and tanh are those of Cephes (netlib.org/cephes, expf and tanhf), of erf those of Eigen's
rational minimax approximation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

LOG2_E = math.log2(math.e)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # sum: ln 2; the first has few bits, so n times it is exact
LARGEST, SMALLEST = 88.72283, -87.33654  # beyond, e^x is infinite or not normal
ROUNDER = 1.5 * 2**23  # u + ROUNDER - ROUNDER = rne(u), and the sum's last bits are that integer
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
ERF_ABOVE = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
ERF_BELOW = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Functions:
    """Expression -> expression; and expression, axis -> the extreme along it."""

    exp: Callable[[Any], Any]
    tanh: Callable[[Any], Any]
    erf: Callable[[Any], Any]
    largest: Callable[..., Any]
    smallest: Callable[..., Any]


def number(value: float) -> Any:
    return tirx.const(value, "float32")


def named(value: Any, use: Callable[[Any], Any]) -> Any:
    """let v = value in use(v): computed once, however often it is read.

    Whatever reads a value twice needs it: an expression that holds a name may stand in one place only.
    """
    name = tirx.Var("v", "float32")
    return tirx.Let(name, value, use(name))


def horner(coefficients: Sequence[float], x: Any) -> Any:
    """The highest coefficient first."""
    result = number(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + number(coefficient)
    return result


def exp(x: Any) -> Any:
    return named(x, exp_of)


def exp_of(x: Any) -> Any:
    cut = tirx.max(tirx.min(x, number(LARGEST)), number(SMALLEST))

    def power(moved: Any) -> Any:
        n = moved - number(ROUNDER)

        def polynomial(rest: Any) -> Any:
            fraction = horner(EXP, rest) * rest * rest + rest + number(1.0)
            # Half of n twice: 2^128 is no float, and e^88.7 is one.
            bits = tirx.op.reinterpret("int32", moved) - tirx.op.reinterpret("int32", number(ROUNDER))
            half = bits >> tirx.const(1, "int32")
            return fraction * power_of_two(half) * power_of_two(bits - half)

        return named(cut - n * number(LN2_HIGH) - n * number(LN2_LOW), polynomial)

    inside = named(cut * number(LOG2_E) + number(ROUNDER), power)
    above = tirx.Select(x > number(LARGEST), number(math.inf), inside)
    below = tirx.Select(x < number(SMALLEST), number(0.0), above)
    return tirx.Select(tirx.isnan(x), x, below)


def power_of_two(n: Any) -> Any:
    """2^n of an integer, by its bits."""
    return tirx.op.reinterpret("float32", (n + tirx.const(127, "int32")) << tirx.const(23, "int32"))


def tanh(x: Any) -> Any:
    def near_and_far(x: Any) -> Any:
        square = x * x
        near = x + x * square * horner(TANH, square)
        far = number(1.0) - number(2.0) / (exp(tirx.abs(x) * number(2.0)) + number(1.0))
        signed = named(far, lambda far: tirx.Select(x < number(0.0), -far, far))
        return tirx.Select(tirx.abs(x) < number(0.625), near, signed)

    return named(x, near_and_far)


def erf(x: Any) -> Any:
    def quotient(x: Any) -> Any:
        square = x * x
        return x * horner(ERF_ABOVE, square) / horner(ERF_BELOW, square)

    return named(tirx.max(tirx.min(x, number(4.0)), number(-4.0)), quotient)


def extreme(beyond: Callable[[Any, Any], Any], least: float) -> Callable[..., Any]:
    """The number that is beyond all others, or NaN where one is none, as torch has it."""

    def further(a: Any, b: Any) -> Any:
        return named(b, lambda v: tirx.Select(tirx.any(beyond(v, a), tirx.isnan(v)), v, a))

    def reduce(value: Any, axis: Any) -> Any:
        # Made for each sum: a name may be bound once in a function.
        return te.comm_reducer(further, lambda dtype: tirx.const(least, dtype))(value, axis=axis)

    return reduce


largest = extreme(lambda b, a: b > a, -math.inf)
smallest = extreme(lambda b, a: b < a, math.inf)

ARITHMETIC = Functions(exp=exp, tanh=tanh, erf=erf, largest=largest, smallest=smallest)
# Where the target has them, as CUDA does. DLight divides among threads only what TVM has by name, and its
# extremes do not look for NaN, and begin at the lowest number that is finite.
NATIVE = Functions(exp=tirx.exp, tanh=tirx.tanh, erf=tirx.erf, largest=te.max, smallest=te.min)
