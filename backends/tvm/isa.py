"""Vector instruction sets as data: how wide a register is, how bytes are multiplied, how codes are rounded.

dot(acc, a, w)[l]  =  acc[l] + sum over u < unit of a[l, u] w[l, u]        int32, exact
"""

from collections.abc import Callable
from dataclasses import dataclass
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
    0 .. 255, in the order of `order`.
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
