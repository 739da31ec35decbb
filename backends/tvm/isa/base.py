"""Vector instruction sets as data: how wide a register is, how bytes are multiplied, how codes are rounded.

dot(acc, a, w)[l]  =  acc[l] + sum over u < unit of a[l, u] w[l, u]        int32, exact
interleave(p)[q][16 part + 4 b + u]  =  p[u][16 part + 4 q + b]            bytes; q, b, u < 4
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import intrinsic

Expression = Any
PART = 16  # bytes within which every set packs and unpacks, however wide its registers are


@dataclass(frozen=True, kw_only=True)
class Processor:
    """What LLVM compiles for, as it calls it, and features beyond that; triple "" is this machine's."""

    name: str
    attributes: tuple[str, ...] = ()
    triple: str = ""


@dataclass(frozen=True, kw_only=True)
class Isa:
    """One instruction set.

    features: what the CPU must have, as the operating system calls it. processor: the least that LLVM may
    compile for. lanes: numbers of 32 bits in a register. unit: bytes of the reduction that one multiplication
    takes per lane, so that weights lie as [.., lanes, unit]. registers: how many accumulators a tile may
    have. latency: multiplications that must be under way at once.
    spread: (bytes, index) -> `unit` codes, the same in every lane. panel: (weights, index) -> one per lane.
    nearest: float32 -> int32, half to even; the lowest number for NaN and for what is too low. narrow: four
    int32 vectors -> 4 * lanes bytes, saturated to 0 .. 255, in the order of `order`. lookup: (registers that
    hold 256 bytes, codes) -> their entries. fence: no access to memory moves across it. barrier: LLVM moves
    none, but the processor may read early.
    """

    name: str
    features: tuple[str, ...]
    processor: Processor
    lanes: int
    unit: int
    registers: int
    latency: int
    spread: Callable[[Any, Expression], Expression]
    panel: Callable[[Any, Expression], Expression]
    dot: Callable[[Expression, Expression, Expression], Expression]
    nearest: Callable[[Expression], Expression]
    narrow: Callable[[list[Expression]], Expression]
    lookup: Callable[[list[Expression], Expression], Expression] | None = None
    fence: Callable[[], Expression]
    barrier: Callable[[], Expression]
    pause: Callable[[], Expression]

    @property
    def bytes(self) -> int:
        """Codes in a register."""
        return 4 * self.lanes

    @property
    def order(self) -> tuple[int, ...]:
        """Within each part, packing puts four bytes of every vector side by side."""
        parts = range(0, self.bytes, PART)
        return tuple(part + v * 4 + b for v in range(4) for part in parts for b in range(4))

    def interleave(self, four: list[Expression]) -> list[Expression]:
        """What lies side by side in four registers of bytes, together in a lane: two rounds of unpacking.

        `narrow` undoes it: four sums by lane become bytes in the order that those of `four` had.
        """
        first, second = (self.unpacked(four[i], four[i + 1], 1) for i in (0, 2))
        halves = [self.unpacked(a, b, 2) for a, b in zip(first, second, strict=True)]
        return [register for pair in halves for register in pair]

    def unpacked(self, a: Expression, b: Expression, width: int) -> list[Expression]:
        """Elements of `width` bytes of a and b in turn, from the low and from the high halves of a part."""
        both = [
            [start + half + i + b_or_a * self.bytes + byte
             for start in range(0, self.bytes, PART) for i in range(0, PART // 2, width)
             for b_or_a in (0, 1) for byte in range(width)]
            for half in (0, PART // 2)
        ]  # fmt: skip
        return [tirx.Shuffle([a, b], order) for order in both]


def effect(name: str, *numbers: int) -> Callable[[], Expression]:
    """An LLVM intrinsic that is called for what it does; nothing moves across it."""
    given = [tirx.const(number, "int32") for number in numbers]
    return lambda: tirx.op.call_llvm_intrin("void", intrinsic(name), *given)


# Of every x86-64.
MFENCE, SFENCE = effect("llvm.x86.sse2.mfence"), effect("llvm.x86.sse.sfence")
PAUSE = effect("llvm.x86.sse2.pause")


def spread_over(lanes: int) -> Callable[[Any, Expression], Expression]:
    """Four codes as one word, the same in every lane."""

    def spread(codes: Any, index: Expression) -> Expression:
        word = tirx.op.reinterpret("int32", codes[tirx.Ramp(index, 1, 4)])
        return tirx.op.reinterpret(f"uint8x{4 * lanes}", tirx.Broadcast(word, lanes))

    return spread


def panel_of(size: int) -> Callable[[Any, Expression], Expression]:
    """Bytes of weights side by side."""
    return lambda weights, index: weights[tirx.Ramp(index, 1, size)]
