"""Stochastic rounding to codes of 8 bits, by the draws of `numerics.philox`, bit for bit.

    q = (floor(v) + [u < v - floor(v)]) step        v = clamp(x / s, -L, L) / step        1 for integers

The draw of element e is word e % 4 of a counter that ends in e // 4: four neighbours share what it costs.
"""

import triton
import triton.language as tl

from qcompiler.backends.triton.kernels.draws import uniform
from qcompiler.backends.triton.kernels.quantize import EXPONENT, MAGIC, ratio_of


@triton.jit
def draws(key, tensor, purpose, first, second, pitch, A: tl.constexpr, B: tl.constexpr, EVEN: tl.constexpr):
    """[A, B] of the elements (first + a) pitch + second + b; EVEN: whether 4 divides pitch, second and B."""
    row, column = first + tl.arange(0, A), tl.arange(0, B)
    if EVEN:
        fours = (second // 4 + tl.arange(0, B // 4)).to(tl.uint32)
        block = row.to(tl.uint32)[:, None] * (pitch // 4).to(tl.uint32) + fours[None, :]
        found = tl.reshape(uniform(key, tensor, purpose, block), (A, B))
    else:
        element = row.to(tl.int64)[:, None] * pitch + (second + column)[None, :]
        words = uniform(key, tensor, purpose, (element >> 2).to(tl.uint32))
        is_its = (element & 3)[:, :, None] == tl.arange(0, 4)[None, None, :]
        found = tl.sum(tl.where(is_its, words, 0.0), axis=2)
    return found


@triton.jit
def drawn(x, noise):
    """One of the integers around x, which is at most 2^22. Triton's own floor takes small numbers for 0."""
    nearest = (x + MAGIC) - MAGIC
    floor = nearest - tl.where(nearest > x, 1.0, 0.0)
    return floor + tl.where(noise < x - floor, 1.0, 0.0)


@triton.jit
def drawn_codes_of(x, scale, noise, LARGEST: tl.constexpr, MANTISSA: tl.constexpr, NORMAL: tl.constexpr):
    """As `codes_of`; the mean over noise is x / s."""
    ratio = ratio_of(x, scale, LARGEST)
    if MANTISSA == 0:
        found = drawn(ratio, noise)
    else:  # products by powers of two are exact
        power = (ratio.to(tl.int32, bitcast=True) & EXPONENT).to(tl.float32, bitcast=True)
        step = tl.maximum(power, NORMAL) * MANTISSA
        found = drawn(tl.div_rn(ratio, step), noise) * step
    return found
