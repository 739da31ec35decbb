"""How kernels are compiled, as data: tiles, warps and stages, and what their machine code must be like.

A row is for devices of a compute capability (90 is 9.0, an H100) and, up to `latest`, for those without a row
of their own. Its bounds are what compiling without a GPU has shown, with little to spare: code that becomes
worse is noticed where nothing can be timed.

A heavy epilogue, GELU or a residual, holds so much at once that a thread has registers for 64 sums and not
for 128: with tiles of 128 x 256 it spills.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qcompiler.errors import TargetError

SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one program may have, by compute capability (CUDA C++ programming guide)."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What machine code may need, and must have.

    registers: of a thread, at most. shared: bytes at most. mma: the family of its matrix instructions, "" for
    none. wide_loads: instructions that load 16 bytes a thread, or a tile, at least. permutes: instructions
    that shuffle bytes of registers, at most: an operand in the wrong order takes them by the dozen. exact:
    whether all that is rounded is rounded as on the CPU.
    """

    registers: int
    shared: int
    mma: str
    wide_loads: int
    permutes: int
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to compile a kernel.

    mode: how sums are taken, where a kernel knows more than one way. heavy: whether an epilogue may do more
    than scale and add a bias. constants: what the source calls `constexpr` and a tuner may choose.
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


def tile(m: int, n: int, k: int, *, descriptors: bool) -> dict[str, Any]:
    """GROUP: rows of tiles that are walked down before the next column of them."""
    return {"BM": m, "BN": n, "BK": k, "GROUP": 8, "DESCRIPTORS": descriptors}


ANY = 1000  # no later device needs a row of its own
THREADS = tile(128, 128, 64, descriptors=False)
WIDE = tile(128, 256, 128, descriptors=True)
SQUARE = tile(128, 128, 128, descriptors=True)

CONFIGURATIONS: tuple[Configuration, ...] = (
    Configuration(
        kernel="quantize_rows", capability=80, latest=ANY, constants={"BLOCK": 4096}, warps=8, stages=1,
        bounds=Bounds(registers=40, shared=1024, mma="", wide_loads=2, permutes=24, exact=True),
    ),
    Configuration(
        kernel="quantize_long_rows", capability=80, latest=ANY, constants={"BLOCK": 4096}, warps=8, stages=1,
        bounds=Bounds(registers=48, shared=1024, mma="", wide_loads=4, permutes=32, exact=True),
    ),
    Configuration(
        kernel="int8_matmul", capability=80, latest=ANY, constants=THREADS, warps=4, stages=3,
        bounds=Bounds(registers=240, shared=49152, mma="IMMA", wide_loads=24, permutes=0, exact=True),
    ),
    Configuration(
        kernel="int8_matmul", heavy=True, capability=80, latest=ANY, constants=THREADS, warps=8, stages=3,
        bounds=Bounds(registers=208, shared=49152, mma="IMMA", wide_loads=12, permutes=32),
    ),
    Configuration(
        kernel="int8_matmul", capability=90, latest=90, constants=WIDE, warps=8, stages=3,
        bounds=Bounds(registers=192, shared=150528, mma="IGMMA", wide_loads=6, permutes=0, exact=True),
    ),
    Configuration(
        kernel="int8_matmul", heavy=True, capability=90, latest=90, constants=SQUARE, warps=8, stages=3,
        bounds=Bounds(registers=208, shared=134144, mma="IGMMA", wide_loads=6, permutes=32),
    ),
    Configuration(
        kernel="fp8_matmul", mode="fast", capability=90, latest=90,
        constants={"PROMOTE": None, **WIDE}, warps=8, stages=3,
        bounds=Bounds(registers=200, shared=150528, mma="QGMMA", wide_loads=6, permutes=0),
    ),
    Configuration(
        kernel="fp8_matmul", mode="fast", heavy=True, capability=90, latest=90,
        constants={"PROMOTE": None, **SQUARE}, warps=8, stages=3,
        bounds=Bounds(registers=208, shared=134144, mma="QGMMA", wide_loads=6, permutes=32),
    ),
    Configuration(
        kernel="fp8_matmul", mode="promote128", capability=90, latest=90,
        constants={"PROMOTE": 128, **SQUARE}, warps=8, stages=3,
        bounds=Bounds(registers=168, shared=134144, mma="QGMMA", wide_loads=6, permutes=0),
    ),
    Configuration(
        kernel="fp8_matmul", mode="promote128", heavy=True, capability=90, latest=90,
        constants={"PROMOTE": 128, **SQUARE}, warps=8, stages=3,
        bounds=Bounds(registers=224, shared=134144, mma="QGMMA", wide_loads=6, permutes=32),
    ),
)  # fmt: skip


def chosen(kernel: str, capability: int, *, mode: str = "", heavy: bool = False) -> Configuration:
    """The row for the latest compute capability not beyond the device's; TargetError without one."""
    found = [row for row in CONFIGURATIONS if (row.kernel, row.mode, row.heavy) == (kernel, mode, heavy)]
    fit = [row for row in found if row.capability <= capability <= row.latest]
    if not fit:
        known = ", ".join(str(row.capability / 10) for row in found)
        raise TargetError(
            " ".join(f"{kernel} {mode} on a device of compute capability {capability / 10}".split()),
            why=f"it has configurations for {known}" if known else "there is no such kernel",
            fix="use int8, or keep the op in float",
        )
    return max(fit, key=lambda row: row.capability)
