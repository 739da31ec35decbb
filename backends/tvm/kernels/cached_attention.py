"""Attention of new tokens over a cache of keys and values, into which their own are written first.

    q, k, v    = columns of x[t]: heads of queries, of keys, of values; q and k turned by rotary tables
    keys[p], values[p]  =  k, v                        p = position + t
    s[j]       = scale log2(e) q . keys[j],  j <= p    by 16 keys: their products are summed crosswise
    y[t]       = sum_j 2^(s[j] - max s) values[j]  /  sum_j 2^(s[j] - max s)

The position is read at run time, so that one function serves every length. Rows of a head follow one
another, so the cache is read in order. With u = 2^-24, D the width of a head, and S the largest
scale sum |q| |keys[j]|, where |a cos| + |b sin| counts for what is turned, float32 is near the exact result:

    |error| <= u max|v| (2 (D / 16 + 12) S + 1.1 (p + 1) + 20)
"""

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.activation import FARTHEST, POWER
from qcompiler.backends.tvm.kernels.lanes import across, plus
from qcompiler.backends.tvm.kernels.power import power_of_two
from qcompiler.backends.tvm.kernels.rounding import Rounding, rounder
from qcompiler.backends.tvm.kernels.strips import whole
from qcompiler.backends.tvm.plane import Plane

BLOCK = 16  # keys whose scores are made together


Place = tuple[Any, Any]  # a buffer, and where in it


@dataclass(frozen=True, kw_only=True)
class CachedAttention:
    """x [batch tokens, (heads + 2 kv_heads) width] by row, y [.., heads width], caches of `capacity` tokens.

    block: numbers of a block in which y is rounded as well (`rounding.py`), or 0. Invariants: the width is a
    multiple of 16; a head of keys serves heads / kv_heads heads of queries.
    """

    x: Plane
    y: Plane
    heads: int
    kv_heads: int
    width: int
    capacity: int
    batch: int = 1
    scale: float
    rotary: bool
    block: int = 0

    @property
    def tokens(self) -> int:
        return self.x.images * self.x.height * self.x.width // self.batch

    @property
    def position(self) -> Plane:
        return flat(1)

    @property
    def cache(self) -> Plane:
        """Keys, or values; behind the last row others may be read."""
        return flat((self.batch * self.kv_heads * self.capacity + BLOCK) * self.width)

    @property
    def scratch(self) -> Plane:
        """The scores of one head, and its queries."""
        return flat(whole(self.capacity, BLOCK) + self.width)


def flat(count: int) -> Plane:
    return Plane(images=1, height=1, width=1, channels=count, pitch=count)


def cached_attention(layer: CachedAttention, isa: Isa, name: str) -> Any:
    """The function (x, position [1], [cos, sin [capacity, width / 2],] scratch, keys, values, y,
    [codes, scales, sums]).
    """
    k, width = Builder(name), layer.width
    x = k.argument("x", "float32", layer.x.size)
    position = k.argument("position", "int32", layer.position.size)
    tables = [k.argument(n, "float32", layer.capacity * width // 2) for n in ("cos", "sin") if layer.rotary]
    scratch = k.argument("scratch", "float32", layer.scratch.size)
    keys, values = (k.argument(n, "float32", layer.cache.size) for n in ("keys", "values"))
    y = k.argument("y", "float32", layer.y.size)
    round_row = rounder(k, isa, Rounding(x=layer.y, block=layer.block), y) if layer.block else None
    query = whole(layer.capacity, BLOCK)  # where it lies behind the scores
    shared = layer.heads // layer.kv_heads
    last = layer.batch * layer.kv_heads - 1
    turned = Turned(half=width // 2, lanes=isa.lanes if width // 2 % isa.lanes == 0 else 8, tables=tables)
    with k.loop(layer.batch) as b, k.loop(layer.tokens) as t:
        here, line = k.load(position, 0) + t, b * layer.tokens + t
        with k.loop(layer.kv_heads) as g:
            which = b * layer.kv_heads + g
            row, start = which * layer.capacity, line * layer.x.pitch
            following = tirx.min(which + 1, last) * layer.capacity
            new = (row + here) * width
            turn(k, turned, here, (x, start + (layer.heads + g) * width), (keys, new), 1.0)
            for d in range(0, width, isa.lanes):
                value = k.load(x, start + (layer.heads + layer.kv_heads + g) * width + d, isa.lanes)
                k.store(values, new + d, value, isa.lanes)
            with k.loop(shared) as r:
                head = g * shared + r
                factor = layer.scale * math.log2(math.e)
                turn(k, turned, here, (x, start + head * width), (scratch, query), factor)
                one = Head(
                    width=width, here=here, scratch=scratch, query=query, keys=(keys, row * width),
                    values=(values, row * width), next_keys=(keys, following * width),
                    y=(y, line * layer.y.pitch + head * width),
                )  # fmt: skip
                weigh(k, isa, one, scored(k, isa, one))
        if round_row is not None:
            round_row(line)
    return k.function()


@dataclass(frozen=True, kw_only=True)
class Head:
    """What one head of queries reads and writes, for a token at position `here`.

    Rows of the cache are many pages, so what comes next is fetched while what is there is computed on: the
    values beside their keys, and beside the values the keys of the next head. Into the second cache: the
    first is no larger than what one head reads.
    """

    width: int
    here: Any
    scratch: Any
    query: int
    keys: Place
    values: Place
    next_keys: Place
    y: Place


@dataclass(frozen=True, kw_only=True)
class Turned:
    """Half a head in vectors of so many lanes, and the tables of cosines and sines, if there are any."""

    half: int
    lanes: int
    tables: list[Any]


def turn(k: Builder, by: Turned, here: Any, source: Place, to: Place, factor: float) -> None:
    """factor (a cos - b sin), factor (b cos + a sin); without tables only the factor."""
    half, lanes = by.half, by.lanes
    for i in range(0, half, lanes):
        a, b = (k.keep(k.load(source[0], source[1] + i + o, lanes), "float32", lanes) for o in (0, half))
        sides = a, b
        if by.tables:
            cos, sin = (k.keep(k.load(t, here * half + i, lanes), "float32", lanes) for t in by.tables)
            sides = a * cos - b * sin, b * cos + a * sin
        for value, offset in zip(sides, (0, half), strict=True):
            scaled = k.keep(value, "float32", lanes) * splat(factor, "float32", lanes)
            k.store(to[0], to[1] + i + offset, scaled if factor != 1.0 else value, lanes)


def scored(k: Builder, isa: Isa, head: Head) -> Any:
    """Scores into the scratch, -inf behind the last key; the largest, in all lanes."""
    lanes, width = isa.lanes, head.width
    largest = k.register("float32", lanes)
    k.store(largest, 0, splat(-math.inf, "float32", lanes), lanes)
    steps = range(0, width, lanes)
    parts = [k.keep(k.load(head.scratch, head.query + d, lanes), "float32", lanes) for d in steps]
    # Key by key, as they lie in memory: what is stored in between keeps LLVM from moving loads to where their
    # sums want them, and prefetches into one burst.
    products = k.scratch("float32", lanes * lanes)
    with k.loop(tirx.floordiv(head.here + lanes, lanes)) as b:
        for j in range(lanes):
            row = tirx.min(b * lanes + j, head.here)  # what lies behind would be fetched in vain
            first, *others = (load_beside(k, head.keys, head.values, row * width + d, lanes) for d in steps)
            product = k.keep(parts[0] * first, "float32", lanes)
            for q, key in zip(parts[1:], others, strict=True):
                product = k.keep(tirx.op.fma(q, key, product), "float32", lanes)
            k.store(products, j * lanes, product, lanes)
        sums = [k.load(products, j * lanes, lanes) for j in range(lanes)]
        crossed = sums_across(k, sums)
        seen = tirx.Ramp(b * lanes, 1, lanes) <= splat(head.here, "int32", lanes)
        score = k.keep(tirx.Select(seen, crossed, splat(-math.inf, "float32", lanes)), "float32", lanes)
        k.store(head.scratch, b * lanes, score, lanes)
        k.store(largest, 0, tirx.max(k.load(largest, 0, lanes), score), lanes)
    return across(k, k.load(largest, 0, lanes), "float32", lanes, tirx.max)


def load_beside(k: Builder, read: Place, fetched: Place, at: Any, lanes: int) -> Any:
    """A vector from one place, and a prefetch of what lies as far into another."""
    k.prefetch(fetched[0], fetched[1] + at, level=2)
    return k.load(read[0], read[1] + at, lanes)


def sums_across(k: Builder, vectors: list[Any]) -> Any:
    """A vector whose lane i is the sum of all lanes of vector i: halves of two become one, and so on."""
    lanes = size = len(vectors)
    while len(vectors) > 1:
        half, count = size // 2, len(vectors) // 2
        joined = []
        for a, b in zip(vectors[:count], vectors[count:], strict=True):
            low, high = (
                [
                    start + offset + i + other * lanes
                    for start in range(0, lanes, size) for other in (0, 1) for i in range(half)
                ]
                for offset in (0, half)
            )  # fmt: skip
            both = tirx.Shuffle([a, b], low) + tirx.Shuffle([a, b], high)
            joined.append(k.keep(both, "float32", lanes))
        vectors, size = joined, half
    return vectors[0]


def weigh(k: Builder, isa: Isa, head: Head, largest: Any) -> None:
    """Powers of two of the scores, and the mean of the values that they weigh."""
    lanes, scratch, here = isa.lanes, head.scratch, head.here
    total = k.register("float32", lanes)
    k.store(total, 0, splat(0.0, "float32", lanes), lanes)
    with k.loop(tirx.floordiv(here + lanes, lanes)) as b:
        below = k.load(scratch, b * lanes, lanes) - largest
        exponent = k.keep(tirx.max(below, splat(-FARTHEST, "float32", lanes)), "float32", lanes)
        power = power_of_two(k, exponent, lanes, POWER)
        seen = tirx.Ramp(b * lanes, 1, lanes) <= splat(here, "int32", lanes)
        weight = k.keep(tirx.Select(seen, power, splat(0.0, "float32", lanes)), "float32", lanes)
        k.store(scratch, b * lanes, weight, lanes)
        k.store(total, 0, k.load(total, 0, lanes) + weight, lanes)
    whole_sum = across(k, k.load(total, 0, lanes), "float32", lanes, plus)
    ratio = k.keep(splat(1.0, "float32", lanes) / whole_sum, "float32", lanes)
    sums = {d: k.register("float32", lanes) for d in range(0, head.width, lanes)}
    for register in sums.values():
        k.store(register, 0, splat(0.0, "float32", lanes), lanes)
    with k.loop(here + 1) as j:
        weight = k.keep(splat(k.load(scratch, j), "float32", lanes), "float32", lanes)
        for d, register in sums.items():
            value = load_beside(k, head.values, head.next_keys, j * head.width + d, lanes)
            k.store(register, 0, tirx.op.fma(weight, value, k.load(register, 0, lanes)), lanes)
    for d, register in sums.items():
        k.store(head.y[0], head.y[1] + d, k.load(register, 0, lanes) * ratio, lanes)
