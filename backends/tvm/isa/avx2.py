"""Registers of 32 bytes: AVX2 alone, with VNNI, and with VNNI as AVX-512 encodes it for short registers."""

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

EVEN_BYTES = splat(255, "int16", 16)
BYTE = splat(8, "int16", 16)  # bits


def vpdpbusd(accumulator: Expression, a: Expression, w: Expression) -> Expression:
    return pure("int32x8", "llvm.x86.avx512.vpdpbusd.256", accumulator, a, w)


def vpmaddwd(accumulator: Expression, a: Expression, w: Expression) -> Expression:
    """Products of 16 bits, of the even and of the odd bytes: sums of two fit into 32 bits.

    vpmaddubsw would multiply the bytes themselves, but saturates a sum of two to 16 bits: 2 * 255 * 127.
    """
    codes, weights = (tirx.op.reinterpret("int16x16", each) for each in (a, w))
    unsigned = tirx.op.reinterpret("uint16x16", a)
    even = codes & EVEN_BYTES, (weights << BYTE) >> BYTE
    odd = tirx.op.reinterpret("int16x16", unsigned >> splat(8, "uint16", 16)), weights >> BYTE
    first, second = (pure("int32x8", "llvm.x86.avx2.pmadd.wd", *pair) for pair in (even, odd))
    return accumulator + (first + second)


def vcvtps2dq(x: Expression) -> Expression:
    return pure("int32x8", "llvm.x86.avx.cvt.ps2dq.256", x)


def packed(four: list[Expression]) -> Expression:
    """As with 512 bits, within the same 128."""
    low, high = (pure("int16x16", "llvm.x86.avx2.packssdw", *four[i : i + 2]) for i in (0, 2))
    return pure("uint8x32", "llvm.x86.avx2.packuswb", low, high)


HASWELL = "x86-64-v3"  # as LLVM calls all that has AVX2 and fused multiply-add

# Of 16 registers the sums leave four for the codes and weights that are just multiplied.
AVX2 = Isa(
    name="avx2", features=("avx2", "fma"), processor=Processor(name=HASWELL), lanes=8, unit=4, registers=12,
    latency=4, spread=spread_over(8), panel=panel_of(32), dot=vpmaddwd, nearest=vcvtps2dq,
    narrow=packed, fence=MFENCE, barrier=SFENCE, pause=PAUSE,
)  # fmt: skip
AVX_VNNI = replace(
    AVX2, name="avx_vnni", features=("avx2", "fma", "avx_vnni"),
    processor=Processor(name=HASWELL, attributes=("avxvnni",)), latency=8,
    dot=vpdpbusd,
)  # fmt: skip
AVX512VL_VNNI = replace(
    AVX_VNNI, name="avx512vl_vnni", features=("avx2", "fma", "avx512vl", "avx512_vnni"),
    processor=Processor(name=HASWELL, attributes=("avx512vl", "avx512vnni")), registers=28,
)  # fmt: skip
