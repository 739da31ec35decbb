"""Instruction sets as data: one `Isa` each, by family, and the table of them.

base   what a kernel asks of one          avx512, avx2, neon   the instructions
"""

from collections.abc import Collection

from qcompiler.backends.tvm.isa.avx2 import AVX2, AVX512VL_VNNI, AVX_VNNI
from qcompiler.backends.tvm.isa.avx512 import AVX512_VBMI, AVX512_VNNI
from qcompiler.backends.tvm.isa.base import Isa, Processor
from qcompiler.backends.tvm.isa.neon import NEON_DOT, NEON_I8MM

__all__ = [
    "AVX2", "AVX512VL_VNNI", "AVX512_VBMI", "AVX512_VNNI", "AVX_VNNI", "ISAS", "NEON_DOT", "NEON_I8MM", "Isa",
    "Processor", "isa_for", "runnable",
]  # fmt: skip

# The best first.
ISAS = (AVX512_VBMI, AVX512_VNNI, AVX512VL_VNNI, AVX_VNNI, AVX2, NEON_I8MM, NEON_DOT)


def runnable(features: Collection[str]) -> tuple[Isa, ...]:
    """Those that a CPU with these features has, the best first."""
    return tuple(isa for isa in ISAS if set(isa.features) <= set(features))


def isa_for(features: Collection[str]) -> Isa | None:
    """The best of them."""
    return next(iter(runnable(features)), None)
