"""Small floating-point formats with any split between exponent and mantissa."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.errors import RecipeError
from qcompiler.numerics.exponent import exp2, floor_log2
from qcompiler.numerics.rounding import stochastic

Specials = Literal["ieee", "fn", "fnuz", "none"]


@dataclass(frozen=True, kw_only=True)
class FloatFormat:
    """Sign, E exponent bits, M mantissa bits, a bias b, and what the special codes are.

    normal     (-1)^sign * 2^(e - b) * (1 + m / 2^M)        1 <= e
    subnormal  (-1)^sign * 2^(1 - b) * m / 2^M              e = 0

    specials: "ieee" inf and NaN in the top exponent; "fn" finite, NaN in the all-ones code of each
    sign; "fnuz" finite, one NaN in the code of -0; "none" every code is a finite number.
    Every value and every step between two of them is a normal float32 number or zero.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials

    def __post_init__(self) -> None:
        lowest = 2 if self.specials == "ieee" else 1
        if self.exponent_bits < lowest or self.mantissa_bits < 0 or not 3 <= self.bits <= 16:
            raise RecipeError(
                f"no float format with {self.exponent_bits} exponent and {self.mantissa_bits} mantissa bits",
                fix=f"use at least {lowest} exponent bits and 3 to 16 bits in all, sign included",
            )
        if (
            1 - self.bias - self.mantissa_bits < -126
            or (self.max_code >> self.mantissa_bits) - self.bias > 127
        ):
            raise RecipeError(
                f"{self.name} exceeds float32", why=f"bias is {self.bias}", fix="use a bias nearer to 0"
            )

    @property
    def bits(self) -> int:
        """Sign, exponent and mantissa together."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def name(self) -> str:
        """Such as "float8_e4m3fn"; says the bias where it is not the usual one."""
        narrow = self.bits < 8
        suffix = {
            "fn": "fn",
            "fnuz": "fnuz",
            "ieee": "ieee" if narrow else "",
            "none": "" if narrow else "none",
        }
        bias = "" if self.bias == default_bias(self.exponent_bits, self.specials) else f"b{self.bias}"
        return f"float{self.bits}_e{self.exponent_bits}m{self.mantissa_bits}{bias}{suffix[self.specials]}"

    @property
    def storage(self) -> torch.dtype:
        """uint8 up to 8 bits, int32 above."""
        return torch.uint8 if self.bits <= 8 else torch.int32

    @property
    def max_code(self) -> int:
        """The code of the largest finite number."""
        top = (1 << (self.bits - 1)) - 1
        return top - {"ieee": 1 << self.mantissa_bits, "fn": 1, "fnuz": 0, "none": 0}[self.specials]

    @property
    def nan_code(self) -> int | None:
        """The code that NaN encodes to, None where the format has no NaN."""
        sign = 1 << (self.bits - 1)
        return {"ieee": sign - 1, "fn": sign - 1, "fnuz": sign, "none": None}[self.specials]

    @property
    def max(self) -> float:
        """The largest finite number."""
        exponent, mantissa = divmod(self.max_code, (1 << self.mantissa_bits))
        return math.ldexp((1 << self.mantissa_bits) + mantissa, exponent - self.bias - self.mantissa_bits)

    @property
    def min_normal(self) -> float:
        """2^(1 - b)."""
        return math.ldexp(1.0, 1 - self.bias)

    @property
    def min_subnormal(self) -> float:
        """2^(1 - b - M): the smallest positive number, and the finest step."""
        return math.ldexp(1.0, 1 - self.bias - self.mantissa_bits)

    def decode_table(self) -> Tensor:
        """The values of all 2^bits codes in order, float64."""
        return torch.from_numpy(_decode_table(self).copy())

    def decode(self, codes: Tensor) -> Tensor:
        """The float32 values of codes."""
        return self.decode_table().to(codes.device, torch.float32)[codes.long()]

    def round(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The nearest number of the format, ties to even, saturating (+-inf become +-max).

        c = clip(x, +-max);  e = max(floor_log2(|c|), 1 - b);  step = 2^(e - M);  step * rne(c / step)

        NaN stays NaN where the format has one; elsewhere it becomes -max, as integers turn it into qmin.
        With noise u in [0, 1) one of the two neighbours, lo <= c <= hi, where hi has the probability
        (c - lo) / (hi - lo): the mean is c.
        """
        clipped = self._clip(x)
        step = exp2(self._exponent(clipped) - self.mantissa_bits)
        steps = (clipped / step).round_() if noise is None else stochastic(clipped / step, noise)
        return steps.mul_(step).clamp_(-self.max, self.max)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The codes of `round(x, noise)`.

        code(|y|) = (e + b - 1) * 2^M + |y| / 2^(e - M)        subnormals included, since there e = 1 - b
        """
        y = self.round(x, noise)
        exponent = self._exponent(y)
        magnitude = (y.abs() / exp2(exponent - self.mantissa_bits)).nan_to_num_(nan=0.0).to(torch.int32)
        magnitude += (exponent + (self.bias - 1)) << self.mantissa_bits
        negative = (y < 0) if self.specials == "fnuz" else torch.signbit(y)
        codes = magnitude + (negative.to(torch.int32) << (self.bits - 1))
        if self.nan_code is not None:
            codes = codes.masked_fill(torch.isnan(y), self.nan_code)
        return codes.to(self.storage)

    def _clip(self, x: Tensor) -> Tensor:
        clipped = x.to(torch.float32).clamp(-self.max, self.max)
        return clipped.nan_to_num(nan=-self.max) if self.nan_code is None else clipped

    def _exponent(self, clipped: Tensor) -> Tensor:
        highest = (self.max_code >> self.mantissa_bits) - self.bias
        return floor_log2(clipped).clamp_(1 - self.bias, max(highest, 1 - self.bias))

    def __str__(self) -> str:
        return self.name


def default_bias(exponent_bits: int, specials: Specials) -> int:
    """2^(E-1) - 1, and 2^(E-1) for "fnuz"."""
    return (1 << (exponent_bits - 1)) - (specials != "fnuz")


@lru_cache(maxsize=64)
def _decode_table(format: FloatFormat) -> NDArray[np.float64]:
    # of numpy, since a tensor that is made while a graph is captured has no values to be kept
    fraction, sign = 1 << format.mantissa_bits, 1 << (format.bits - 1)
    codes = np.arange(2 * sign)
    magnitudes = codes % sign
    exponents, mantissas = np.divmod(magnitudes, fraction)
    significands = (mantissas + fraction * (exponents > 0)).astype(np.float64)
    values: NDArray[np.float64] = np.ldexp(
        significands, np.maximum(exponents, 1) - format.bias - format.mantissa_bits
    )
    if format.specials == "ieee":
        values[magnitudes > format.max_code] = np.nan
        values[magnitudes == format.max_code + 1] = np.inf
    if format.specials == "fn":
        values[magnitudes > format.max_code] = np.nan
    values[codes >= sign] *= -1.0
    if format.specials == "fnuz":
        values[sign] = np.nan
    return values
