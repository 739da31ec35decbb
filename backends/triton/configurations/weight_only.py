"""Products of floats and weights of few bits, by rows of x: one is "gemv", up to 16 few, up to 64 some.

In "gemv" products are exact before they are added, and are added by `fma`: it counts as inexact for nothing.
"""

from dataclasses import replace
from typing import Any

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration

MMA = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
LATEST = {80: 89, 90: 90, 100: 119, 120: ANY}


def tile(m: int, n: int) -> dict[str, Any]:
    """k is a group at a time. GROUP: tiles of outputs that are walked along before the next tile of rows."""
    return {"BM": m, "BN": n, "GROUP": 8}


def gemm(
    capability: int,
    mode: str,
    constants: dict[str, Any],
    warps: int,
    stages: int,
    *,
    heavy: bool = False,
    **bounds: int,
) -> Configuration:
    return Configuration(
        kernel="weight_only_gemm", mode=mode, heavy=heavy, capability=capability,
        latest=LATEST[capability], constants=constants, warps=warps, stages=stages,
        bounds=Bounds(mma=MMA[capability], exact=not heavy, **bounds),
    )  # fmt: skip


def later(
    capability: int, rows: tuple[Configuration, ...], *, shared: int, permutes: int
) -> list[Configuration]:
    """Rows for a later capability, whose machine code needs so much more."""
    return [
        replace(
            row, capability=capability, latest=LATEST[capability],
            bounds=replace(
                row.bounds, mma=MMA[capability], shared=row.bounds.shared + shared,
                permutes=row.bounds.permutes + permutes,
            ),
        )
        for row in rows
    ]  # fmt: skip


SYNCHRONOUS: tuple[Configuration, ...] = (
    gemm(80, "few", tile(16, 64), 4, 4, registers=96, shared=36864, wide_loads=16, permutes=104),
    gemm(80, "few", tile(16, 64), 4, 4, heavy=True, registers=128, shared=24576, wide_loads=32, permutes=200),
    gemm(80, "few, short groups", tile(16, 64), 4, 8, registers=72, shared=28672, wide_loads=0, permutes=48),
    gemm(80, "some", tile(64, 64), 4, 3, registers=160, shared=40960, wide_loads=30, permutes=116),
    gemm(
        80, "some", tile(64, 64), 4, 3, heavy=True, registers=208, shared=40960, wide_loads=60, permutes=200
    ),
    gemm(80, "many", tile(128, 128), 8, 3, registers=208, shared=81920, wide_loads=30, permutes=132),
    gemm(
        80, "many", tile(64, 128), 8, 3, heavy=True, registers=200, shared=49152, wide_loads=36, permutes=200
    ),
)
"""Of 8.x, by mma.sync; the shared memory of 12.x holds as much, and that of 10.x more."""

WEIGHT_ONLY: tuple[Configuration, ...] = (
    Configuration(
        kernel="weight_only_gemv",
        capability=80,
        latest=ANY,
        constants={"BN": 4},
        warps=1,
        stages=1,
        bounds=Bounds(registers=128, shared=128, mma="", wide_loads=6, permutes=80),
    ),
    *SYNCHRONOUS,
    *later(100, SYNCHRONOUS, shared=1024, permutes=0),
    *later(120, SYNCHRONOUS, shared=0, permutes=16),
    gemm(90, "few", tile(16, 64), 4, 4, registers=104, shared=40960, wide_loads=8, permutes=68),
    gemm(90, "few", tile(16, 64), 4, 4, heavy=True, registers=128, shared=28672, wide_loads=16, permutes=140),
    gemm(90, "few, short groups", tile(16, 64), 4, 8, registers=64, shared=30720, wide_loads=0, permutes=36),
    gemm(90, "some", tile(64, 64), 4, 3, registers=160, shared=57344, wide_loads=24, permutes=68),
    gemm(
        90, "some", tile(64, 64), 4, 3, heavy=True, registers=216, shared=57344, wide_loads=48, permutes=152
    ),
    gemm(90, "many", tile(128, 128), 8, 3, registers=232, shared=114688, wide_loads=24, permutes=68),
    gemm(
        90, "many", tile(64, 128), 8, 3, heavy=True, registers=208, shared=65536, wide_loads=28, permutes=152
    ),
    Configuration(
        kernel="weight_only_total",
        capability=80,
        latest=ANY,
        constants={"BN": 128},
        warps=1,
        stages=1,
        bounds=Bounds(registers=64, shared=128, mma="", wide_loads=8, permutes=8),
    ),
)
