"""Draws of `numerics.philox`, the same bits, in vector registers.

A word lives in the low half of a lane of 64 bits, whose upper half is arbitrary: a product of two words is
one instruction then, which reads low halves only, and a shift brings its upper word to where it is wanted.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.numerics.philox import MULTIPLIERS, ROUNDS, WEYL, WORD

WORDS = 4  # of one counter, for as many elements
WAYS = 2  # counters side by side: a round waits for the one before, and processors look ahead less than one


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What all elements of a tensor share: the keys of the rounds, and three words of the counter; uint64."""

    keys: tuple[tuple[Any, Any], ...]
    tensor: Any
    step: Any
    purpose: Any


def stream(k: Builder, key: Any, tensor: Any, purpose: Any) -> Stream:
    """`key`: int64 [3], of (seed, step, rank); tensor and purpose are int64."""

    def number(value: Any) -> Any:
        return k.keep(tirx.Cast("uint64", value), "uint64", 1)

    seed, step = number(key[0]), number(key[1])
    halves = seed, k.keep(seed >> word(32), "uint64", 1)
    keys = [
        tuple(k.keep(half + word(r * weyl), "uint64", 1) for half, weyl in zip(halves, WEYL, strict=True))
        for r in range(ROUNDS)
    ]
    return Stream(
        keys=tuple((k0, k1) for k0, k1 in keys), tensor=number(tensor), step=step,
        purpose=number(key[2] * tirx.const(1 << 16, "int64") | purpose),
    )  # fmt: skip


def fractions(k: Builder, given: Stream, block: Any, lanes: int) -> list[Any]:
    """word >> 8 of the elements from 4 * block on: `WAYS` times two vectors of int32.

    Lane 2i of the counters is block i and lane 2i + 1 one of the second half, so that the words of a block
    come together within 16 bytes.

    c = block 0, 2, 1, 3    (w0 w1 w2 w3)[c]  -->  w0 w1 of 0, w2 w3 of 0, w0 w1 of 1, w2 w3 of 1 | 2 .., 3 ..
    """
    counters = lanes // 2
    order = [i // 2 + (i % 2) * (counters // 2) for i in range(counters)]
    places = [tirx.Shuffle([ramp(way * counters, counters)], order) for way in range(WAYS)]
    first = [k.keep(tirx.Broadcast(block, counters) + place, "uint64", counters) for place in places]
    found, alternate = [], [i + odd * lanes for i in range(0, lanes, 2) for odd in (0, 1)]
    for words in philox(k, first, given, counters):
        w0, w1, w2, w3 = (tirx.op.reinterpret(f"uint32x{lanes}", each) for each in words)
        woven = (tirx.Shuffle(two, alternate) for two in ([w0, w1], [w2, w3]))
        pairs = [k.keep(tirx.op.reinterpret(f"uint64x{counters}", two), "uint64", counters) for two in woven]
        for half in (0, 1):
            both = [i + pair * counters for i in range(half, counters, 2) for pair in (0, 1)]
            drawn = tirx.op.reinterpret(f"uint32x{lanes}", tirx.Shuffle(pairs, both))
            found.append(tirx.op.reinterpret(f"int32x{lanes}", drawn >> splat(8, "uint32", lanes)))
    return found


def philox(k: Builder, first: list[Any], given: Stream, lanes: int) -> list[tuple[Any, Any, Any, Any]]:
    """Ten rounds, as `numerics.philox.philox` has them, of several counters side by side."""

    def times(c: Any, multiplier: int) -> Any:
        factor = splat(word(multiplier), "uint64", lanes)
        return k.keep((c & splat(word(WORD), "uint64", lanes)) * factor, "uint64", lanes)

    half = splat(word(32), "uint64", lanes)
    shared = [tirx.Broadcast(each, lanes) for each in (given.tensor, given.step, given.purpose)]
    counters = [(c0, *shared) for c0 in first]
    for k0, k1 in given.keys:
        products = [(times(c0, MULTIPLIERS[0]), times(c2, MULTIPLIERS[1])) for c0, _, c2, _ in counters]
        counters = [
            (
                k.keep((p1 >> half) ^ c1 ^ tirx.Broadcast(k0, lanes), "uint64", lanes), p1,
                k.keep((p0 >> half) ^ c3 ^ tirx.Broadcast(k1, lanes), "uint64", lanes), p0,
            )
            for (p0, p1), (_, c1, _, c3) in zip(products, counters, strict=True)
        ]  # fmt: skip
    return counters


def ramp(start: int, lanes: int) -> Any:
    return tirx.Ramp(word(start), word(1), lanes)


def word(value: int) -> Any:
    return tirx.const(value, "uint64")
