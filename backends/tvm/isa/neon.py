"""ARM with dot products of bytes: registers of 16."""

from dataclasses import replace

from tvm import tirx

from qcompiler.backends.tvm.builder import pure, splat
from qcompiler.backends.tvm.isa.base import Expression, Isa, Processor, effect, panel_of, spread_over


def usdot(accumulator: Expression, a: Expression, w: Expression) -> Expression:
    return pure("int32x4", "llvm.aarch64.neon.usdot", accumulator, a, w)


def udot(accumulator: Expression, a: Expression, w: Expression) -> Expression:
    """a w  =  a (w + 128) - 128 a, where 128 a is computed once for all weights that meet the codes."""
    raised = tirx.op.reinterpret("uint8x16", w) ^ splat(128, "uint8", 16)
    more = pure("int32x4", "llvm.aarch64.neon.udot", splat(0, "int32", 4), a, splat(128, "uint8", 16))
    return pure("int32x4", "llvm.aarch64.neon.udot", accumulator, a, raised) - more


def fcvtns(x: Expression) -> Expression:
    """The instruction would make 0 of NaN."""
    found, lowest = pure("int32x4", "llvm.aarch64.neon.fcvtns", x), -(2**31)
    return tirx.Select(x >= splat(float(lowest), "float32", 4), found, splat(lowest, "int32", 4))


def narrowed(four: list[Expression]) -> Expression:
    """To 16 bits with signed and to 8 with unsigned saturation, in order."""
    words = [pure("int16x4", "llvm.aarch64.neon.sqxtn", x) for x in four]
    halves = [tirx.Shuffle(words[i : i + 2], list(range(8))) for i in (0, 2)]
    return tirx.Shuffle([pure("uint8x8", "llvm.aarch64.neon.sqxtun", x) for x in halves], list(range(16)))


LINUX = "aarch64-unknown-linux-gnu"

NEON_DOT = Isa(
    name="neon_dot", features=("asimddp",),
    processor=Processor(name="generic", attributes=("neon", "dotprod"), triple=LINUX), lanes=4, unit=4,
    registers=20, latency=8, spread=spread_over(4), panel=panel_of(16), dot=udot, nearest=fcvtns,
    narrow=narrowed, fence=effect("llvm.aarch64.dmb", 11),
    barrier=effect("llvm.aarch64.dmb", 10), pause=effect("llvm.aarch64.hint", 1),
)  # fmt: skip
# Products of unsigned and signed bytes: Neoverse N2 and V1, Apple M2, Cortex-X2 and later.
NEON_I8MM = replace(
    NEON_DOT, name="neon_i8mm", features=("asimddp", "i8mm"), dot=usdot, registers=24,
    processor=Processor(name="generic", attributes=("neon", "dotprod", "i8mm"), triple=LINUX),
)  # fmt: skip
