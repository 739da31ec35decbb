"""AVX-512 with VNNI: 64 bytes in a register, and four products of bytes per lane in one instruction."""

from dataclasses import replace

from tvm import tirx

from qcompiler.backends.tvm.builder import pure, splat
from qcompiler.backends.tvm.isa.base import (
    MFENCE,
    PAUSE,
    SFENCE,
    Expression,
    Isa,
    Processor,
    panel_of,
    spread_over,
)

ALL_LANES, CURRENT_ROUNDING = tirx.const(-1, "int16"), tirx.const(4, "int32")


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
    name="avx512_vnni", features=("avx512_vnni",), processor=Processor(name="cascadelake"), lanes=16, unit=4,
    registers=28, latency=4, spread=spread_over(16), panel=panel_of(64), dot=vpdpbusd,
    nearest=vcvtps2dq, narrow=packed, fence=MFENCE, barrier=SFENCE, pause=PAUSE,
)  # fmt: skip


def vpermi2b(table: list[Expression], codes: Expression) -> Expression:
    """Two tables of 128 entries, and the highest bit says which."""
    low, high = (
        pure("uint8x64", "llvm.x86.avx512.vpermi2var.qi.512", table[i], codes, table[i + 1]) for i in (0, 2)
    )
    return tirx.Select(codes < splat(128, "uint8", 64), low, high)


# Zen 4 and later, Ice Lake and later: also permutes bytes across a whole register.
AVX512_VBMI = replace(
    AVX512_VNNI, name="avx512_vbmi", features=("avx512_vnni", "avx512vbmi"),
    processor=Processor(name="icelake-client"), lookup=vpermi2b,
)  # fmt: skip
