"""Attention of rows of floats, a few queries at a time.

    s[t, j]  = q[t] . k[j]                                               j <= t + S - T under a causal mask
    y[t]     = sum_j 2^(c (s[t, j] - max s[t])) v[j]  /  sum_j 2^(c (s[t, j] - max s[t]))
               c = scale log2 e

    keys and values of a head  -->  panels of `lanes` keys, feature by feature;  rows side by side
    a few queries:  their scores  -->  powers of two  -->  sums of values

Nothing of the size queries x keys exists, and what a causal mask hides from all of them is not computed.
With u = 2^-24, D the width of a head and S the largest scale sum |q| |k[j]|, float32 is near what is exact:

    |error| <= u max|v| (2 (D + 12) S + 1.1 keys + 20)
"""

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.activation import FARTHEST, POWER
from qcompiler.backends.tvm.kernels.conv import within
from qcompiler.backends.tvm.kernels.extremes import Extremes
from qcompiler.backends.tvm.kernels.lanes import across, plus
from qcompiler.backends.tvm.kernels.power import power_of_two
from qcompiler.backends.tvm.kernels.strips import whole
from qcompiler.backends.tvm.plane import Plane

MULTIPLE = 16  # of the width of a head: of whole registers in every instruction set
LONGEST = 1 << 17  # numbers of keys of a head, which lie in the second cache
COLUMNS = 2  # registers of keys, or of features, that are summed at a time: few, so that little is in vain


@dataclass(frozen=True, kw_only=True)
class FloatAttention:
    """One layer on borderless planes, a token a pixel, heads side by side from channel 0 on.

    Tokens of a batch follow one another: q and y have batch * queries pixels, k and v batch * keys. Each
    `kv_heads`-th part of the heads of queries shares a head of keys and values. causal: query t sees the keys
    up to t + keys - queries, of which there is one. ranged: whether extremes of y are wanted (`extremes.py`),
    a turn of which is a head of keys.
    """

    q: Plane
    k: Plane
    v: Plane
    y: Plane
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    width: int
    scale: float
    causal: bool
    ranged: bool = False

    @property
    def turns(self) -> int:
        return self.batch * self.kv_heads


def takes(layer: FloatAttention) -> bool:
    """Whether the kernel computes a layer."""
    sees = not layer.causal or layer.keys >= layer.queries
    fits = layer.width % MULTIPLE == 0 and layer.keys * layer.width <= LONGEST
    return sees and fits and layer.scale > 0


def float_attention(layer: FloatAttention, isa: Isa, name: str) -> Any:
    """The function (q, k, v, y, [extremes])."""
    return Kernel(layer, isa, name).function()


class Kernel:
    """The function under construction: what all of its parts refer to."""

    def __init__(self, layer: FloatAttention, isa: Isa, name: str) -> None:
        self.layer, self.isa, self.lanes, k = layer, isa, isa.lanes, Builder(name)
        self.k, self.factor = k, layer.scale * math.log2(math.e)
        self.rows = min((isa.registers - COLUMNS - 2) // COLUMNS, layer.queries)
        self.q, self.keys, self.values, self.y = (
            k.argument(name, "float32", plane.size)
            for name, plane in (("q", layer.q), ("k", layer.k), ("v", layer.v), ("y", layer.y))
        )
        self.seen = Extremes(k, isa, layer.turns) if layer.ranged else None
        self.pitch = whole(layer.keys, COLUMNS * isa.lanes)  # of the scores
        self.packed_keys = k.scratch("float32", self.pitch * layer.width)
        self.packed_values = k.scratch("float32", layer.keys * layer.width)
        self.weights = k.scratch("float32", self.rows * self.pitch)

    def function(self) -> Any:
        k, layer = self.k, self.layer
        shared = layer.heads // layer.kv_heads
        with k.loop(layer.batch) as b, k.loop(layer.kv_heads, shared=True) as g:
            self.pack(b, g)
            with k.loop(shared) as i, k.loop(-(-layer.queries // self.rows)) as turn:
                t = within(k, turn, self.rows, layer.queries)
                count = t + (self.rows + layer.keys - layer.queries) if layer.causal else layer.keys
                place = (b * layer.queries + t, g * shared + i)
                largest = self.score(place, t, count)
                sums = [self.exponentiate(r, largest[r], t, count) for r in range(self.rows)]
                self.mix(place, sums, count)
            if self.seen is not None:
                self.seen.end(b * layer.kv_heads + g)
        return k.function()

    def vector(self, value: Any) -> Any:
        return self.k.keep(value, "float32", self.lanes)

    # ---------------------------------------------------------------- keys and values of a head

    def pack(self, b: Any, g: Any) -> None:
        """[S, D]  -->  keys [S / lanes][D][lanes], and values [S][D]; behind the last key it is repeated."""
        k, layer, lanes = self.k, self.layer, self.lanes
        with k.loop(self.pitch // lanes) as panel, k.loop(layer.width // lanes) as d:
            rows = [tirx.min(panel * lanes + j, layer.keys - 1) for j in range(lanes)]
            lines = [
                self.vector(self.row(self.keys, layer.k, b * layer.keys + row, g, d * lanes)) for row in rows
            ]
            for i, feature in enumerate(self.turned(lines)):
                k.store(self.packed_keys, (panel * layer.width + d * lanes + i) * lanes, feature, lanes)
        with k.loop(layer.keys) as row:
            for d in range(0, layer.width, lanes):
                value = self.row(self.values, layer.v, b * layer.keys + row, g, d)
                k.store(self.packed_values, row * layer.width + d, value, lanes)

    def row(self, buffer: Any, plane: Plane, token: Any, head: Any, d: Any) -> Any:
        return self.k.load(buffer, token * plane.pitch + head * self.layer.width + d, self.lanes)

    def turned(self, lines: list[Any]) -> list[Any]:
        """A square transposed: lane i of line j becomes lane j of line i, half by half."""
        lanes, apart = self.lanes, self.lanes // 2
        while apart:
            found = list(lines)
            low = [lane if lane & apart == 0 else lane - apart + lanes for lane in range(lanes)]
            high = [lane + apart if lane & apart == 0 else lane + lanes for lane in range(lanes)]
            for i in range(lanes):
                if i & apart == 0:
                    pair = [lines[i], lines[i + apart]]
                    found[i], found[i + apart] = (self.vector(tirx.Shuffle(pair, o)) for o in (low, high))
            lines, apart = found, apart // 2
        return lines

    # ---------------------------------------------------------------- a few queries

    def score(self, place: tuple[Any, Any], t: Any, count: Any) -> list[Any]:
        """s of every key that one of the queries sees, into memory; the largest of each, in every lane."""
        k, layer, lanes = self.k, self.layer, self.lanes
        token, head = place
        largest = [k.register("float32", lanes) for _ in range(self.rows)]
        for register in largest:
            k.store(register, 0, splat(-math.inf, "float32", lanes), lanes)
        with k.loop(blocks(count, COLUMNS * lanes)) as block:
            sums = self.sums(self.rows)
            with k.loop(layer.width) as d:
                at = (block * COLUMNS * layer.width + d) * lanes
                held = [
                    k.bind(k.load(self.packed_keys, at + j * layer.width * lanes, lanes))
                    for j in range(COLUMNS)
                ]
                for r, row in enumerate(sums):
                    query = k.load(self.q, (token + r) * layer.q.pitch + head * layer.width + d)
                    self.accumulate(row, query, held)
            for r, row in enumerate(sums):
                for j, register in enumerate(row):
                    key = (block * COLUMNS + j) * lanes
                    end = t + (r + 1 + layer.keys - layer.queries) if layer.causal else layer.keys
                    there = tirx.Ramp(key, 1, lanes) < splat(end, "int32", lanes)
                    hidden = splat(-math.inf, "float32", lanes)
                    score = self.vector(tirx.Select(there, k.load(register, 0, lanes), hidden))
                    k.store(self.weights, r * self.pitch + key, score, lanes)
                    k.store(largest[r], 0, tirx.max(k.load(largest[r], 0, lanes), score), lanes)
        return [across(k, k.load(register, 0, lanes), "float32", lanes, tirx.max) for register in largest]

    def exponentiate(self, r: int, largest: Any, t: Any, count: Any) -> Any:
        """Powers of two of one query's scores, into memory; their sum, in every lane."""
        k, lanes = self.k, self.lanes
        total = k.register("float32", lanes)
        k.store(total, 0, splat(0.0, "float32", lanes), lanes)
        with k.loop(blocks(count, lanes)) as block:
            at = r * self.pitch + block * lanes
            apart = k.load(self.weights, at, lanes) - largest
            below = self.vector(apart * splat(self.factor, "float32", lanes))
            exponent = self.vector(tirx.max(below, splat(-FARTHEST, "float32", lanes)))
            power = power_of_two(k, exponent, lanes, POWER)
            nothing = splat(0.0, "float32", lanes)
            weight = self.vector(tirx.Select(below > splat(-math.inf, "float32", lanes), power, nothing))
            k.store(self.weights, at, weight, lanes)
            k.store(total, 0, k.load(total, 0, lanes) + weight, lanes)
        return across(k, k.load(total, 0, lanes), "float32", lanes, plus)

    def mix(self, place: tuple[Any, Any], totals: list[Any], count: Any) -> None:
        """Weights times values, divided by their sum."""
        k, layer, lanes = self.k, self.layer, self.lanes
        token, head = place
        one = splat(1.0, "float32", lanes)
        shares = [self.vector(one / total) for total in totals]
        columns = layer.width // lanes
        for first in range(0, columns, COLUMNS):
            several = range(first, min(first + COLUMNS, columns))
            sums = self.sums(self.rows, len(several))
            with k.loop(count) as key:
                held = [
                    k.bind(k.load(self.packed_values, key * layer.width + j * lanes, lanes)) for j in several
                ]
                for r, row in enumerate(sums):
                    self.accumulate(row, k.load(self.weights, r * self.pitch + key), held)
            for r, row in enumerate(sums):
                found = [self.vector(k.load(register, 0, lanes) * shares[r]) for register in row]
                for j, value in zip(several, found, strict=True):
                    at = (token + r) * layer.y.pitch + head * layer.width + j * lanes
                    k.store(self.y, at, value, lanes)
                if self.seen is not None:
                    self.seen.see(found)

    def sums(self, rows: int, columns: int = COLUMNS) -> list[list[Any]]:
        """Registers of sums, zero at first."""
        made = [[self.k.register("float32", self.lanes) for _ in range(columns)] for _ in range(rows)]
        for row in made:
            for register in row:
                self.k.store(register, 0, splat(0.0, "float32", self.lanes), self.lanes)
        return made

    def accumulate(self, row: list[Any], number: Any, held: list[Any]) -> None:
        k, lanes = self.k, self.lanes
        factor = k.bind(splat(number, "float32", lanes))
        for register, vector in zip(row, held, strict=True):
            k.store(register, 0, tirx.op.fma(factor, vector, k.load(register, 0, lanes)), lanes)


def blocks(count: Any, size: int) -> Any:
    """How many cover a count, which may be known only at run time."""
    return -(-count // size) if isinstance(count, int) else tirx.floordiv(count + (size - 1), size)
