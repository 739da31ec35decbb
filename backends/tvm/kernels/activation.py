"""Activations of rows of floats, alone or as the gate of other rows, and their codes.

    y = f(x),  or  f(x) u        q = sat(rne(y / s) + z)        a true division, as everywhere; exact given y

    gelu         x / 2 (1 + e Q(2 e^2 / 4.4^2 - 1)),  e = x cut to +-4.4        x Phi(x); no division
    gelu_tanh    x / (1 + 2^(-x (a + b x^2)))         the approximation by tanh, which is a sigmoid as well
    silu         x / (1 + 2^(-x log2 e))

Q is minimax in the error of the result, and meets erf = 1 at the cut; exponents are cut to +-126.
Against float64:

    |error| <= 2^-21 |x|, and for gelu 2.6e-5 more
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.power import power_of_two
from qcompiler.backends.tvm.kernels.rows import parts, results, rows, vectors
from qcompiler.backends.tvm.plane import Plane

CUT = 4.4  # beyond it Phi is 0 or 1 within the error of Q
GELU = (
    0.320808827, -0.157224691, 0.110501623, -0.0801776955, 0.0536005172, -0.0319561353, 0.0219835973,
    -0.015766725, 0.00550340936,
)  # fmt: skip
POWER = (1.00000007, 0.693146967, 0.240221197, 0.0555071327, 0.00967554145, 0.00132764721)  # to 7.5e-8
FARTHEST = 126.0  # of exponents
LOG2_E = math.log2(math.e)
TANH = 2 * math.sqrt(2 / math.pi) * LOG2_E  # a; b = 0.044715 a


def gelu(k: Builder, x: Any, lanes: int) -> Any:
    """x Phi(x) by a polynomial; x has a register."""

    def number(value: float) -> Any:
        return splat(value, "float32", lanes)

    cut = k.keep(tirx.max(tirx.min(x, number(CUT)), number(-CUT)), "float32", lanes)
    place = k.keep(tirx.op.fma(cut * cut, number(2 / CUT**2), number(-1.0)), "float32", lanes)
    result = number(GELU[-1])
    for coefficient in GELU[-2::-1]:
        result = tirx.op.fma(result, place, number(coefficient))
    half = k.keep(x * number(0.5), "float32", lanes)
    return tirx.op.fma(half, cut * result, half)


def silu(k: Builder, x: Any, lanes: int) -> Any:
    return by_sigmoid(k, x, x * splat(-LOG2_E, "float32", lanes), lanes)


def gelu_tanh(k: Builder, x: Any, lanes: int) -> Any:
    factors = (splat(value, "float32", lanes) for value in (-0.044715 * TANH, -TANH))
    return by_sigmoid(k, x, x * tirx.op.fma(x * x, *factors), lanes)


def by_sigmoid(k: Builder, x: Any, exponent: Any, lanes: int) -> Any:
    """x / (1 + 2^exponent)"""
    far = splat(FARTHEST, "float32", lanes)
    u = k.keep(tirx.max(tirx.min(exponent, far), splat(-FARTHEST, "float32", lanes)), "float32", lanes)
    return x / (power_of_two(k, u, lanes, POWER) + splat(1.0, "float32", lanes))


FUNCTIONS: Mapping[str, Callable[[Builder, Any, int], Any]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
}


@dataclass(frozen=True, kw_only=True)
class Activation:
    """One layer on borderless planes of equal pixels; each pixel is a row.

    x, other: float32, `channels` numbers from `first` and `other_first` on, which may lie on one plane; no
    `other`: y = f(x). floats: where y goes, codes: where q goes; None: not wanted. block: numbers of a block
    in which y is rounded as well (`rounding.py`), or 0. ranged: whether the extremes of y are wanted
    (`extremes.py`).
    """

    function: str
    channels: int
    x: Plane
    first: int = 0
    other: Plane | None = None
    other_first: int = 0
    floats: Plane | None = None
    codes: Plane | None = None
    block: int = 0
    ranged: bool = False


def activation(layer: Activation, isa: Isa, name: str) -> Any:
    """The function (x, [other,] [s of codes, z of codes,] [y,] [q,] [codes, scales, sums,] [extremes])."""
    k, lanes, function = Builder(name), isa.lanes, FUNCTIONS[layer.function]
    given = [(k.argument("x", "float32", layer.x.size), layer.x, layer.first)]
    if layer.other is not None:
        given.append((k.argument("other", "float32", layer.other.size), layer.other, layer.other_first))
    result = results(k, isa, layer.floats, layer.codes, layer.block, layer.ranged)
    with k.loop(rows(layer.x), shared=True) as row:
        for at, lengths in parts(k, layer.channels, lanes):
            loaded = [
                vectors(k, buffer, row * plane.pitch + first + at, lengths, lanes)
                for buffer, plane, first in given
            ]
            values = [function(k, k.keep(x, "float32", lanes), lanes) for x in loaded[0]]
            if layer.other is not None:
                values = [value * factor for value, factor in zip(values, loaded[1], strict=True)]
            result.part(row, at, values, lengths)
        result.end(row)
    return k.function()
