"""Attention of new tokens over a cache of keys and values, into which their own are written first.

    q, k, v    = columns of x[t]: heads of queries, of keys, of values; q and k turned by rotary tables
    keys[p], values[p]  =  k, v                        p = position + t
    s[j]       = scale log2(e) q . keys[j],  j <= p    by 16 keys: their products are summed crosswise
    y[t]       = sum_j 2^(s[j] - max s) values[j]  /  sum_j 2^(s[j] - max s)

The position is read at run time, so that one function serves every length. Rows of a head follow one
another, and the values of a head are read beside the keys of the next one: two streams in order of memory.
With u = 2^-24, D the width of a head, and S the largest scale sum |q| |keys[j]|, where |a cos| + |b sin|
counts for what is turned, float32 is near the exact result:

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
LINE = 16  # numbers in a cache line


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
        """The scores of two heads, and all queries of a token."""
        return flat(2 * whole(self.capacity, BLOCK) + self.heads * self.width)


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
    room, shared, last = whole(layer.capacity, BLOCK), layer.heads // layer.kv_heads, layer.heads - 1
    turned = Turned(half=width // 2, lanes=isa.lanes if width // 2 % isa.lanes == 0 else 8, tables=tables)
    with k.loop(layer.batch) as b, k.loop(layer.tokens) as t:
        here, line = k.load(position, 0) + t, b * layer.tokens + t
        start = line * layer.x.pitch
        with k.loop(layer.kv_heads) as g:
            new = ((b * layer.kv_heads + g) * layer.capacity + here) * width
            turn(k, turned, here, (x, start + (layer.heads + g) * width), (keys, new), 1.0)
            for d in range(0, width, isa.lanes):
                value = k.load(x, start + (layer.heads + layer.kv_heads + g) * width + d, isa.lanes)
                k.store(values, new + d, value, isa.lanes)
        with k.loop(layer.heads) as h:
            factor = layer.scale * math.log2(math.e)
            turn(k, turned, here, (x, start + h * width), (scratch, 2 * room + h * width), factor)

        def head(h: Any) -> Head:
            row = (b * layer.kv_heads + tirx.floordiv(h, shared)) * layer.capacity * width
            return Head(
                width=width, here=here, scores=(scratch, tirx.floormod(h, 2) * room),
                query=(scratch, 2 * room + h * width), keys=(keys, row), values=(values, row),
                y=(y, line * layer.y.pitch + h * width),
            )  # fmt: skip

        largest = k.register("float32", isa.lanes)
        one = head(tirx.const(0, "int32"))
        read(k, isa, None, one, (one, one), largest)
        if last:
            with k.loop(last) as h:
                one, other = head(h), head(h + 1)
                read(k, isa, one, other, (other, head(tirx.min(h + 2, last))), largest)
        one = head(tirx.const(last, "int32"))
        read(k, isa, one, None, (one, one), largest)
        if round_row is not None:
            round_row(line)
    return k.function()


@dataclass(frozen=True, kw_only=True)
class Head:
    """What one head of queries reads and writes, for a token at position `here`."""

    width: int
    here: Any
    scores: Place
    query: Place
    keys: Place
    values: Place
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


def read(
    k: Builder, isa: Isa, weighed: Head | None, scored: Head | None, then: tuple[Head, Head], largest: Any
) -> None:
    """Sum the values of one head while the keys of the next one are scored: both are read as streams.

    largest: a register with the largest score, in all lanes; of `weighed` before, of `scored` afterwards.
    then: whose values and whose keys are read next. Rows of a head are many pages from those of another, and
    what the processor foresees of a stream begins late and does not end with it: so with every row, one of
    the next block is announced, and the beginning of what comes next. Into the second cache.
    """
    lanes, both = isa.lanes, [head for head in (weighed, scored) if head is not None]
    width, here, steps = both[0].width, both[0].here, range(0, both[0].width, isa.lanes)
    blocks = tirx.floordiv(here + lanes, lanes)
    ratio = powers(k, isa, weighed, k.load(largest, 0, lanes), blocks) if weighed else None
    sums = {d: k.register("float32", lanes) for d in steps if weighed}
    for register in sums.values():
        k.store(register, 0, splat(0.0, "float32", lanes), lanes)
    parts = [k.keep(k.load(*at(scored.query, d), lanes), "float32", lanes) for d in steps] if scored else []
    k.store(largest, 0, splat(-math.inf, "float32", lanes), lanes)
    # Key by key, as they lie in memory: what is stored in between keeps LLVM from moving loads to where their
    # sums want them.
    products = k.scratch("float32", lanes * lanes)
    with k.loop(blocks) as b:
        for j in range(lanes):
            row = tirx.min(b * lanes + j, here)  # a weight behind it is 0
            if scored:
                announce(k, scored.keys, then[1].keys, b * lanes + j, width)
                first, *others = (k.load(*at(scored.keys, row * width + d), lanes) for d in steps)
                product = k.keep(parts[0] * first, "float32", lanes)
                for q, key in zip(parts[1:], others, strict=True):
                    product = k.keep(tirx.op.fma(q, key, product), "float32", lanes)
                k.store(products, j * lanes, product, lanes)
            if weighed:
                announce(k, weighed.values, then[0].values, b * lanes + j, width)
                weight = splat(k.load(*at(weighed.scores, b * lanes + j)), "float32", lanes)
                weight = k.keep(weight, "float32", lanes)
                for d, register in sums.items():
                    value = k.load(*at(weighed.values, row * width + d), lanes)
                    k.store(register, 0, tirx.op.fma(weight, value, k.load(register, 0, lanes)), lanes)
        if scored:
            crossed = sums_across(k, [k.load(products, j * lanes, lanes) for j in range(lanes)])
            seen = tirx.Ramp(b * lanes, 1, lanes) <= splat(here, "int32", lanes)
            score = k.keep(tirx.Select(seen, crossed, splat(-math.inf, "float32", lanes)), "float32", lanes)
            k.store(*at(scored.scores, b * lanes), score, lanes)
            k.store(largest, 0, tirx.max(k.load(largest, 0, lanes), score), lanes)
    if scored:
        k.store(largest, 0, across(k, k.load(largest, 0, lanes), "float32", lanes, tirx.max), lanes)
    for d, register in sums.items():
        assert weighed is not None
        k.store(*at(weighed.y, d), k.load(register, 0, lanes) * ratio, lanes)


def announce(k: Builder, this: Place, following: Place, row: Any, width: int) -> None:
    k.prefetch(*at(following, row * LINE), level=2)
    k.prefetch(*at(this, (row + BLOCK) * width), level=2)


def at(place: Place, offset: Any) -> Place:
    return place[0], place[1] + offset


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


def powers(k: Builder, isa: Isa, head: Head, largest: Any, blocks: Any) -> Any:
    """Powers of two in the place of scores, 0 behind the last key; one over their sum, in all lanes."""
    lanes = isa.lanes
    total = k.register("float32", lanes)
    k.store(total, 0, splat(0.0, "float32", lanes), lanes)
    with k.loop(blocks) as b:
        below = k.load(*at(head.scores, b * lanes), lanes) - largest
        exponent = k.keep(tirx.max(below, splat(-FARTHEST, "float32", lanes)), "float32", lanes)
        power = power_of_two(k, exponent, lanes, POWER)
        seen = tirx.Ramp(b * lanes, 1, lanes) <= splat(head.here, "int32", lanes)
        weight = k.keep(tirx.Select(seen, power, splat(0.0, "float32", lanes)), "float32", lanes)
        k.store(*at(head.scores, b * lanes), weight, lanes)
        k.store(total, 0, k.load(total, 0, lanes) + weight, lanes)
    whole_sum = across(k, k.load(total, 0, lanes), "float32", lanes, plus)
    return k.keep(splat(1.0, "float32", lanes) / whole_sum, "float32", lanes)
