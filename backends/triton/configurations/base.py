"""How kernels are compiled, as data: tiles, warps and stages, and what their machine code must be like.

A row is for devices of a compute capability (90 is 9.0, an H100) and, up to `latest`, for those without a row
of their own. Its bounds are what compiling without a GPU has shown, with little to spare: code that becomes
worse is noticed where nothing can be timed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SHARED = {
    80: 163 * 1024, 86: 99 * 1024, 87: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024,
    120: 99 * 1024,
}  # fmt: skip
"""Bytes of shared memory that one program may have, by compute capability (CUDA C++ programming guide)."""


RESERVED = 1024  # more of them in a processor, which keeps as many for each program that it holds


def shared_of(capability: int, programs: int = 1) -> int:
    """Those of a device: of the latest capability not beyond its own, or of the first.

    programs: that one processor is to hold at the same time.
    """
    most = SHARED[max(known for known in SHARED if known <= max(capability, min(SHARED)))]
    return (most + RESERVED) // programs - RESERVED


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What machine code may need, and must have.

    registers: of a thread, at most. shared: bytes at most. mma: the family of its matrix instructions, "" for
    none. wide_loads: instructions that load 16 bytes a thread, or a tile, at least. permutes: instructions
    that shuffle bytes of registers, at most: an operand in the wrong order takes them by the dozen.
    wide_stores: instructions that store 16 bytes a thread, at least. exact: whether all that is rounded is
    rounded as on the CPU.
    """

    registers: int
    shared: int
    mma: str
    wide_loads: int
    permutes: int
    wide_stores: int = 0
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to compile a kernel.

    mode: how sums are taken, or how long they may be, where a kernel knows more than one way. heavy: whether
    an epilogue may do more than scale and add a bias. constants: what the source calls `constexpr` and a
    tuner may choose.
    """

    kernel: str
    mode: str = ""
    heavy: bool = False
    capability: int
    latest: int
    constants: Mapping[str, Any]
    warps: int
    stages: int
    bounds: Bounds = field(compare=False)

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


ANY = 1000  # no later device needs a row of its own
