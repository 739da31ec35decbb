"""Vector instruction sets as data: how wide a register is, how bytes are multiplied, how codes are rounded.

dot(acc, a, w)[l]  =  acc[l] + sum over u < unit of a[l, u] w[l, u]        int32, exact
interleave(p)[q][16 part + 4 b + u]  =  p[u][16 part + 4 q + b]            bytes; q, b, u < 4
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import pure, splat

Expression = Any


@dataclass(frozen=True, kw_only=True)
class Isa:
    """One instruction set.

    lanes: numbers of 32 bits in a register. unit: bytes of the reduction that one multiplication takes per
    lane, so that weights lie as [.., lanes, unit]. registers: how many accumulators a tile may have.
    latency: cycles of a multiplication that starts in every one.
    spread: (bytes, index) -> `unit` codes, the same in every lane. panel: (weights, index) -> one per lane.
    nearest: float32 -> int32, half to even. narrow: four int32 vectors -> 4 * lanes bytes, saturated to
    0 .. 255, in the order of `order`. lookup: (four registers that hold 256 bytes, codes) -> their entries.
    """

    name: str
    features: tuple[str, ...]
    lanes: int
    unit: int
    registers: int
    latency: int
    spread: Callable[[Any, Expression], Expression]
    panel: Callable[[Any, Expression], Expression]
    dot: Callable[[Expression, Expression, Expression], Expression]
    nearest: Callable[[Expression], Expression]
    narrow: Callable[[list[Expression]], Expression]
    order: tuple[int, ...]
    lookup: Callable[[list[Expression], Expression], Expression] | None = None

    @property
    def bytes(self) -> int:
        """Codes in a register."""
        return 4 * self.lanes

    def interleave(self, four: list[Expression]) -> list[Expression]:
        """What lies side by side in four registers of bytes, together in a lane: two rounds of unpacking.

        `narrow` undoes it: four sums by lane become bytes in the order that those of `four` had.
        """
        first, second = (self.unpacked(four[i], four[i + 1], 1) for i in (0, 2))
        halves = [self.unpacked(a, b, 2) for a, b in zip(first, second, strict=True)]
        return [register for pair in halves for register in pair]

    def unpacked(self, a: Expression, b: Expression, width: int) -> list[Expression]:
        """Elements of `width` bytes of a and b in turn, from the low and from the high halves of 16 bytes."""
        both = [
            [start + half + i + b_or_a * self.bytes + byte
             for start in range(0, self.bytes, 16) for i in range(0, 8, width)
             for b_or_a in (0, 1) for byte in range(width)]
            for half in (0, 8)
        ]  # fmt: skip
        return [tirx.Shuffle([a, b], order) for order in both]


# ---------------------------------------------------------------- AVX-512 with VNNI

ALL_LANES, CURRENT_ROUNDING = tirx.const(-1, "int16"), tirx.const(4, "int32")


def spread_bytes(codes: Any, index: Expression) -> Expression:
    word = tirx.op.reinterpret("int32", codes[tirx.Ramp(index, 1, 4)])
    return tirx.op.reinterpret("uint8x64", tirx.Broadcast(word, 16))


def vpdpbusd(accumulator: Expression, a: Expression, w: Expression) -> Expression:
    return pure("int32x16", "llvm.x86.avx512.vpdpbusd.512", accumulator, a, w)


def vcvtps2dq(x: Expression) -> Expression:
    return pure(
        "int32x16", "llvm.x86.avx512.mask.cvtps2dq.512", x, splat(0, "int32", 16), ALL_LANES, CURRENT_ROUNDING
    )


def packed(four: list[Expression]) -> Expression:
    """Two packs with signed and one with unsigned saturation; each works within 128 bits."""
    low, high = (pure("int16x32", "llvm.x86.avx512.packssdw.512", *four[i : i + 2]) for i in (0, 2))
    return pure("uint8x64", "llvm.x86.avx512.packuswb.512", low, high)


AVX512_VNNI = Isa(
    name="avx512_vnni", features=("avx512_vnni",), lanes=16, unit=4, registers=28, latency=4,
    spread=spread_bytes, panel=lambda w, index: w[tirx.Ramp(index, 1, 64)], dot=vpdpbusd, nearest=vcvtps2dq,
    narrow=packed,
    # Within each of four parts, the packs put four bytes of every vector side by side.
    order=tuple(part * 16 + v * 4 + b for v in range(4) for part in range(4) for b in range(4)),
)  # fmt: skip


def vpermi2b(table: list[Expression], codes: Expression) -> Expression:
    """Two tables of 128 entries, and the highest bit says which."""
    low, high = (
        pure("uint8x64", "llvm.x86.avx512.vpermi2var.qi.512", table[i], codes, table[i + 1]) for i in (0, 2)
    )
    return tirx.Select(codes < splat(128, "uint8", 64), low, high)


# Zen 4 and later, Ice Lake and later: also permutes bytes across a whole register.
AVX512_VBMI = replace(
    AVX512_VNNI, name="avx512_vbmi", features=("avx512_vnni", "avx512vbmi"), lookup=vpermi2b
)

ISAS = (AVX512_VBMI, AVX512_VNNI)  # the best first


def isa_for(features: Collection[str]) -> Isa | None:
    """The best instruction set that a processor with these features has."""
    return next((isa for isa in ISAS if set(isa.features) <= set(features)), None)
