"""Attention of 8-bit codes as one kernel: `qcompiler.backends.reference.attention` to the last bit.

    keys and values of a head  -->  registers of a dot product each, once for all queries
    a few queries:  scores with all keys  -->  probabilities of 8 bits  -->  their products with the values

Nothing of the size queries x keys exists. Keys are the signed operand, k - 128; the zero point of q is in
what sums begin with, the one of v is taken off the result.

    keys    [S / lanes][D / 4][lanes][4]        4 features of every key of a register
    values  [D / lanes][S / 4][lanes][4]        4 keys of every feature of a register
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

from tvm import tirx

from qcompiler.backends.reference.attention import LOG2_E, LOG2_LEVELS, LOWEST, NO_KEY, POWER
from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import within
from qcompiler.backends.tvm.kernels.lanes import across, plus
from qcompiler.backends.tvm.kernels.power import power_of_two
from qcompiler.backends.tvm.kernels.rows import store_steps, widened
from qcompiler.backends.tvm.kernels.strips import store_codes, whole
from qcompiler.backends.tvm.plane import Plane

PART = 16  # bytes within which registers are unpacked
UNIT = 4  # bytes of a dot product
MIDDLE = 128  # u8 - MIDDLE = s8
LONGEST = 2**31 // 255**2  # keys whose products with probabilities fit int32


@dataclass(frozen=True, kw_only=True)
class Operand:
    """Codes of heads on a borderless plane, a token a pixel: head h has D channels from `first` + h D on."""

    plane: Plane
    first: int = 0

    def at(self, token: Any, head: Any, width: int) -> Any:
        return self.plane.origin + token * self.plane.pitch + self.first + head * width


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One layer: `heads` of queries, each `kv_heads`-th part of which shares a head of keys and values.

    Tokens of a batch follow one another: q and y have batch * queries pixels, k and v batch * keys.
    mask: strides of float32 numbers over [batch, heads, queries, keys], 0 where they are repeated.
    causal: query t sees the keys up to t + keys - queries.
    """

    q: Operand
    k: Operand
    v: Operand
    y: Operand
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    width: int
    mask: tuple[int, int, int, int] | None = None
    causal: bool = False

    @property
    def mask_size(self) -> int:
        extents = self.batch, self.heads, self.queries, self.keys
        return 1 + sum(
            stride * (extent - 1) for stride, extent in zip(self.mask or (0,) * 4, extents, strict=True)
        )

    @property
    def products(self) -> int:
        """Multiply-accumulates, of keys that are masked as well."""
        return 2 * self.batch * self.heads * self.queries * self.keys * self.width


def takes(layer: Attention, isa: Isa) -> bool:
    """Whether there is a kernel.

    Heads are read four features at a time, so D is a multiple of 4 (one that is none of 16 wastes lanes);
    numbers of a mask are side by side or repeated along the keys; sums fit int32.
    """
    return (
        layer.width % UNIT == 0
        and layer.heads % layer.kv_heads == 0
        and (layer.mask is None or layer.mask[3] in (0, 1))
        and max(layer.keys, layer.width) <= LONGEST
        and isa.unit == UNIT
    )


def attention(layer: Attention, isa: Isa, name: str, rows: int | None = None) -> Any:
    """The function (q, k, v, [mask,] [c, w], [z_q, z_v, z_y], y); `rows` queries at a time, or `rows_for`."""
    return Kernel(layer, isa, name, min(rows or rows_for(layer), layer.queries)).function()


def rows_for(layer: Attention) -> int:
    """Queries at a time: 4, or 5 where that computes fewer twice; the sums of more do not fit registers."""
    return min((4, 5), key=lambda rows: -layer.queries % rows)


class Kernel:
    """The function under construction: what all of its parts refer to."""

    def __init__(self, layer: Attention, isa: Isa, name: str, rows: int) -> None:
        self.layer, self.isa, self.rows, k = layer, isa, rows, Builder(name)
        self.k, self.lanes = k, isa.lanes
        self.q, self.keys, self.values = (
            k.argument(name, "uint8", operand.plane.size)
            for name, operand in (("q", layer.q), ("k", layer.k), ("v", layer.v))
        )
        if layer.mask is not None:
            self.mask = k.argument("mask", "float32", layer.mask_size)
        self.numbers = k.argument("numbers", "float32", 2)
        self.zeros = k.argument("zeros", "int32", 3)  # of q, v and y
        self.y = k.argument("y", "uint8", layer.y.plane.size)
        self.steps, self.groups = layer.width // UNIT, -(-layer.keys // UNIT)
        self.columns = -(-layer.width // isa.lanes)  # registers of features
        panels = -(-layer.keys // isa.lanes)
        self.packed_keys = k.scratch("int8", panels * self.steps * isa.bytes)
        self.packed_values = k.scratch("int8", self.columns * self.groups * isa.bytes)
        self.begins = k.scratch("int32", panels * isa.lanes)  # -z_q sum_d (k - 128)
        self.pitch = whole(layer.keys, isa.bytes)
        self.exponents = k.scratch("float32", rows * self.pitch)
        self.probabilities = k.scratch("uint8", rows * self.pitch)

    def function(self) -> Any:
        k, layer, rows = self.k, self.layer, self.rows
        shared = layer.heads // layer.kv_heads
        with k.loop(layer.batch) as b, k.loop(layer.kv_heads, shared=True) as g:
            self.pack_keys(b, g)
            self.pack_values(b, g)
            with k.loop(shared) as i, k.loop(-(-layer.queries // rows)) as turn:
                head = g * shared + i
                t = within(k, turn, rows, layer.queries)
                seen = self.seen(t + (rows - 1)) if layer.causal else layer.keys
                largest = self.score((b, head, t), seen)
                sums = [self.exponentiate(r, largest[r], seen) for r in range(rows)]
                self.mix((b, head, t), sums, seen)
        return k.function()

    def seen(self, t: Any) -> Any:
        """How many keys a query sees under a causal mask."""
        layer = self.layer
        count = t + (layer.keys - layer.queries + 1)
        return count if layer.keys >= layer.queries else tirx.max(count, 0)

    # ---------------------------------------------------------------- keys and values of a head

    def pack_keys(self, b: Any, g: Any) -> None:
        """A register of keys at a time: 16 features of each, turned by fours; then the sums over features."""
        k, layer, lanes = self.k, self.layer, self.lanes

        def panel(number: Any, keys: list[Any]) -> None:
            for d in range(0, layer.width, PART):
                lines = [self.lines(layer.k, self.keys, b, g, keys[u::UNIT], d) for u in range(UNIT)]
                for step, codes in enumerate(self.turned(lines), d // UNIT):
                    if step < self.steps:
                        k.store(
                            self.packed_keys, (number * self.steps + step) * self.isa.bytes,
                            codes, self.isa.bytes,
                        )  # fmt: skip
            register = k.register("int32", lanes)
            k.store(register, 0, splat(0, "int32", lanes), lanes)
            ones = splat(1, "uint8", self.isa.bytes)
            with k.loop(self.steps) as step:
                codes = self.isa.panel(self.packed_keys, (number * self.steps + step) * self.isa.bytes)
                k.store(register, 0, self.isa.dot(k.load(register, 0, lanes), ones, codes), lanes)
            begin = k.load(register, 0, lanes) * splat(0 - k.load(self.zeros, 0), "int32", lanes)
            k.store(self.begins, number * lanes, begin, lanes)

        with k.loop(layer.keys // lanes) as number:
            panel(number, [number * lanes + j for j in range(lanes)])
        if layer.keys % lanes:
            first = layer.keys // lanes * lanes
            panel(layer.keys // lanes, [min(first + j, layer.keys - 1) for j in range(lanes)])

    def lines(self, operand: Operand, buffer: Any, b: Any, g: Any, keys: list[Any], d: int) -> Any:
        """16 features of as many keys as a register has parts."""
        k, layer = self.k, self.layer
        parts = [k.load(buffer, operand.at(b * layer.keys + key, g, layer.width) + d, PART) for key in keys]
        codes = tirx.Shuffle(parts, list(range(self.isa.bytes)))
        return k.keep(codes, "uint8", self.isa.bytes)

    def turned(self, lines: list[Any]) -> list[Any]:
        """Signed codes, four features of all keys in each of four registers."""
        k, isa = self.k, self.isa
        flipped = splat(MIDDLE, "uint8", isa.bytes)
        lines = [k.keep(line ^ flipped, "uint8", isa.bytes) for line in lines]
        halves = [
            [k.keep(part, "uint8", isa.bytes) for part in isa.unpacked(lines[i], lines[i + 1], UNIT)]
            for i in (0, 2)
        ]
        whole_ = [part for a, b in zip(*halves, strict=True) for part in isa.unpacked(a, b, 2 * UNIT)]
        return [tirx.op.reinterpret(f"int8x{isa.bytes}", part) for part in whole_]

    def pack_values(self, b: Any, g: Any) -> None:
        """Four keys at a time: a feature of all four side by side."""
        k, layer, lanes = self.k, self.layer, self.lanes
        flipped = splat(MIDDLE, "uint8", self.isa.bytes)
        order = [u * lanes + lane for lane in range(lanes) for u in range(UNIT)]

        def group(number: Any, keys: list[Any]) -> None:
            for column in range(self.columns):
                begins = [layer.v.at(b * layer.keys + key, g, layer.width) + column * lanes for key in keys]
                four = [k.load(self.values, begin, lanes) for begin in begins]
                codes = tirx.op.reinterpret(f"int8x{self.isa.bytes}", tirx.Shuffle(four, order) ^ flipped)
                at = (column * self.groups + number) * self.isa.bytes
                k.store(self.packed_values, at, codes, self.isa.bytes)

        with k.loop(layer.keys // UNIT) as number:
            group(number, [number * UNIT + u for u in range(UNIT)])
        if layer.keys % UNIT:
            first = layer.keys // UNIT * UNIT
            group(layer.keys // UNIT, [min(first + u, layer.keys - 1) for u in range(UNIT)])

    # ---------------------------------------------------------------- a few queries

    def blocks(self, seen: Any) -> Iterator[tuple[Any, list[int]]]:
        """First key and lengths of the vectors of every part of the keys that somebody sees, inside loops."""
        k, extent, size = self.k, self.layer.keys, self.isa.bytes
        full, left = divmod(extent, size)
        rest = [min(self.lanes, left - j) for j in range(0, left, self.lanes)]
        if isinstance(seen, int):
            counts = full, int(left > 0)
        else:
            count = k.bind(tirx.floordiv(seen + (size - 1), size))
            counts = tirx.min(count, full), tirx.max(count - full, 0)
        if full:
            with k.loop(counts[0]) as i:
                yield i * size, [self.lanes] * UNIT
        if rest:
            with k.loop(counts[1]):
                yield tirx.const(full * size, "int32"), rest

    def score(self, place: tuple[Any, Any, Any], seen: Any) -> list[Any]:
        """t of every key seen, into memory; the largest of each row, in every lane."""
        k, isa, layer, lanes = self.k, self.isa, self.layer, self.lanes
        b, head, t = place
        largest = [k.register("float32", lanes) for _ in range(self.rows)]
        for register in largest:
            k.store(register, 0, splat(NO_KEY, "float32", lanes), lanes)
        queries = [layer.q.at(b * layer.queries + t + r, head, layer.width) for r in range(self.rows)]
        for key, lengths in self.blocks(seen):
            sums = [[k.register("int32", lanes) for _ in lengths] for _ in queries]
            for j in range(len(lengths)):
                begin = k.bind(k.load(self.begins, key + j * lanes, lanes))
                for row in sums:
                    k.store(row[j], 0, begin, lanes)
            with k.loop(self.steps) as step:
                # A panel is `lanes` keys by D features: D lanes bytes.
                at = key * layer.width + step * isa.bytes
                held = [
                    k.bind(isa.panel(self.packed_keys, at + j * lanes * layer.width))
                    for j in range(len(lengths))
                ]
                for row, begin in zip(sums, queries, strict=True):
                    codes = k.bind(isa.spread(self.q, begin + step * UNIT))
                    for register, keys in zip(row, held, strict=True):
                        k.store(register, 0, isa.dot(k.load(register, 0, lanes), codes, keys), lanes)
            for r, row in enumerate(sums):
                for j, (register, length) in enumerate(zip(row, lengths, strict=True)):
                    spot = b, head, t + r, key + j * lanes
                    exponent = k.keep(self.exponent(register, spot, length), "float32", lanes)
                    k.store(self.exponents, r * self.pitch + key + j * lanes, exponent, lanes)
                    most = tirx.max(k.load(largest[r], 0, lanes), exponent)
                    k.store(largest[r], 0, most, lanes)
        return [across(k, k.load(register, 0, lanes), "float32", lanes, tirx.max) for register in largest]

    def exponent(self, register: Any, spot: tuple[Any, ...], length: int) -> Any:
        """t of as many keys as a register has lanes; -inf where there is no key, or none that may be seen."""
        k, layer, lanes = self.k, self.layer, self.lanes
        key = spot[-1]
        score = tirx.Cast(f"float32x{lanes}", k.load(register, 0, lanes))
        step = splat(k.load(self.numbers, 0), "float32", lanes)
        if layer.mask is None:
            result = score * step  # also read for the largest, so LLVM joins it to no later sum
        else:
            at = reduce(plus, [stride * index for stride, index in zip(layer.mask, spot, strict=True)])
            if layer.mask[-1]:
                added = widened(k.load(self.mask, at, length), length, lanes)
            else:
                added = splat(k.load(self.mask, at), "float32", lanes)
            result = tirx.op.fma(score, step, added * splat(LOG2_E, "float32", lanes))
        if layer.causal:
            end = self.seen(spot[2])
        elif length < lanes:
            end = layer.keys
        else:
            return result
        here = tirx.Ramp(key, 1, lanes) < splat(end, "int32", lanes)
        return tirx.Select(here, result, splat(-math.inf, "float32", lanes))

    def exponentiate(self, r: int, largest: Any, seen: Any) -> Any:
        """p of one query, into memory; their sum, in every lane."""
        k, lanes = self.k, self.lanes
        offset = k.keep(splat(LOG2_LEVELS, "float32", lanes) - largest, "float32", lanes)
        total = k.register("int32", lanes)
        k.store(total, 0, splat(0, "int32", lanes), lanes)
        for key, lengths in self.blocks(seen):
            at = r * self.pitch + key
            four = []
            for j in range(len(lengths)):
                exponent = k.load(self.exponents, at + j * lanes, lanes) + offset
                raised = k.keep(tirx.max(exponent, splat(LOWEST, "float32", lanes)), "float32", lanes)
                rounded = k.keep(self.isa.nearest(power_of_two(k, raised, lanes, POWER)), "int32", lanes)
                k.store(total, 0, k.load(total, 0, lanes) + rounded, lanes)
                four.append(rounded)
            store_codes(k, self.isa, self.probabilities, at, four)
        return across(k, k.load(total, 0, lanes), "int32", lanes, plus)

    def mix(self, place: tuple[Any, Any, Any], sums: list[Any], seen: Any) -> None:
        """Probabilities times values, divided by their sum, as codes."""
        k, isa, layer, lanes = self.k, self.isa, self.layer, self.lanes
        b, head, t = place
        ratio = splat(k.load(self.numbers, 1), "float32", lanes)
        weights = []
        for total in sums:
            some = tirx.Cast(f"float32x{lanes}", tirx.max(total, splat(1, "int32", lanes)))
            weights.append(k.keep(ratio / some, "float32", lanes))
        zero = k.load(self.zeros, 1) - MIDDLE
        groups = self.groups if isinstance(seen, int) else tirx.floordiv(seen + (UNIT - 1), UNIT)
        for first, columns in self.feature_blocks():
            acc = [[k.register("int32", lanes) for _ in range(columns)] for _ in sums]
            for row in acc:
                for register in row:
                    k.store(register, 0, splat(0, "int32", lanes), lanes)
            with k.loop(groups) as group:
                held = [
                    k.bind(isa.panel(self.packed_values, ((first + j) * self.groups + group) * isa.bytes))
                    for j in range(columns)
                ]
                for r, row in enumerate(acc):
                    codes = k.bind(isa.spread(self.probabilities, r * self.pitch + group * UNIT))
                    for register, values in zip(row, held, strict=True):
                        k.store(register, 0, isa.dot(k.load(register, 0, lanes), codes, values), lanes)
            for r, row in enumerate(acc):
                at = layer.y.at(b * layer.queries + t + r, head, layer.width)
                for j in range(0, columns, UNIT):
                    steps = []
                    for register in row[j : j + UNIT]:
                        exact = k.load(register, 0, lanes) - sums[r] * splat(zero, "int32", lanes)
                        steps.append(tirx.Cast(f"float32x{lanes}", exact) * weights[r])
                    begin = (first + j) * lanes
                    count = min(len(steps) * lanes, layer.width - begin)
                    store_steps(k, isa, self.y, at + begin, steps, k.load(self.zeros, 2), count)

    def feature_blocks(self) -> list[tuple[int, int]]:
        """First register of features and how many are summed at a time, as even as can be."""
        most = max((self.isa.registers - UNIT) // self.rows, 1)
        blocks = -(-self.columns // most)
        ends = [i * self.columns // blocks for i in range(blocks + 1)]
        return [(first, end - first) for first, end in pairwise(ends)]
