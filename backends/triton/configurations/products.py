"""Products of codes of 8 bits.

A heavy epilogue, GELU or a residual, holds so much at once that a thread has registers for 64 sums and not
for 128: with tiles of 128 x 256 it spills. What hands on codes, or maxima, packs them by permutations of
bytes: the other rows, of the same loop, tell whether operands are in order.

FP8 is multiplied by wgmma on 9.0, by tcgen05 on 10.x, and else by mma.sync, from 8.9 on. Triton promotes sums
of wgmma alone: on the others "promote128" compiles to the code of "fast", so it has no row there and is
refused.

Rows with "split" in their mode leave sums of parts, which `product_total` finishes; those with "persistent"
walk over tiles. Nothing runs by them unless they were measured to be the fastest: they stand here for the
candidates of their kind (`tuning.families.products`), whose machine code is like theirs.
"""

from collections.abc import Mapping
from typing import Any

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration

SPLIT, PERSISTENT = "split", "persistent"


def tile(m: int, n: int, k: int, *, descriptors: bool) -> dict[str, Any]:
    """GROUP: rows of tiles that are walked down before the next column of them."""
    return {"BM": m, "BN": n, "BK": k, "GROUP": 8, "DESCRIPTORS": descriptors}


THREADS = tile(128, 128, 64, descriptors=False)
NARROW_STEPS = {"PROMOTE": None, **THREADS}
WIDE = tile(128, 256, 128, descriptors=True)
SQUARE = tile(128, 128, 128, descriptors=True)
LOW = tile(64, 128, 128, descriptors=True)
IN_PARTS = {"SPLIT": 4}
TOTAL = {"BM": 4, "BN": 128}  # 16 bytes for each of 128 threads


def fast(
    capability: int, latest: int, mma: str, shared: int, registers: tuple[int, int], loads: tuple[int, int]
) -> tuple[Configuration, Configuration]:
    """FP8 by threads' own loads; registers and wide loads of the plain and of the heavy epilogue."""
    plain, heavy = (
        Configuration(
            kernel="fp8_matmul", mode="fast", heavy=is_heavy, capability=capability, latest=latest,
            constants=NARROW_STEPS, warps=8, stages=3,
            bounds=Bounds(
                registers=registers[is_heavy], shared=shared, mma=mma, wide_loads=loads[is_heavy],
                permutes=64 * is_heavy,
            ),
        )
        for is_heavy in (False, True)
    )  # fmt: skip
    return plain, heavy


def walking(
    kernel: str,
    capability: int,
    tile: Mapping[str, Any],
    *,
    mode: str = "",
    heavy: bool = False,
    permutes: int = 0,
    **bounds: Any,
) -> Configuration:
    """A program on each processor, of 8 warps; mode: of FP8."""
    promote: Mapping[str, Any] = {"PROMOTE": 128 if mode == "promote128" else None} if mode else {}
    return Configuration(
        kernel=kernel, mode=f"{mode} {PERSISTENT}".strip(), heavy=heavy, capability=capability,
        latest=ANY if capability == 80 else capability, constants={**promote, **tile, "PERSISTENT": 1},
        warps=8, stages=3, bounds=Bounds(permutes=permutes, **bounds),
    )  # fmt: skip


PRODUCTS: tuple[Configuration, ...] = (
    Configuration(
        kernel="int8_matmul", capability=80, latest=ANY, constants=THREADS, warps=4, stages=3,
        bounds=Bounds(registers=252, shared=49152, mma="IMMA", wide_loads=24, permutes=4, exact=True),
    ),
    Configuration(
        kernel="int8_matmul", heavy=True, capability=80, latest=ANY, constants=THREADS, warps=8, stages=3,
        bounds=Bounds(registers=208, shared=49152, mma="IMMA", wide_loads=12, permutes=136),
    ),
    Configuration(
        kernel="int8_matmul", capability=90, latest=90, constants=WIDE, warps=8, stages=3,
        bounds=Bounds(registers=192, shared=150528, mma="IGMMA", wide_loads=6, permutes=0, exact=True),
    ),
    Configuration(
        kernel="int8_matmul", heavy=True, capability=90, latest=90, constants=SQUARE, warps=8, stages=3,
        bounds=Bounds(registers=208, shared=134144, mma="IGMMA", wide_loads=6, permutes=136),
    ),
    Configuration(
        kernel="fp8_matmul", mode="fast", capability=90, latest=90,
        constants={"PROMOTE": None, **WIDE}, warps=8, stages=3,
        bounds=Bounds(registers=200, shared=150528, mma="QGMMA", wide_loads=6, permutes=0),
    ),
    Configuration(
        kernel="fp8_matmul", mode="fast", heavy=True, capability=90, latest=90,
        constants={"PROMOTE": None, **SQUARE}, warps=8, stages=3,
        bounds=Bounds(registers=208, shared=134144, mma="QGMMA", wide_loads=6, permutes=64),
    ),
    Configuration(
        kernel="fp8_matmul", mode="promote128", capability=90, latest=90,
        constants={"PROMOTE": 128, **SQUARE}, warps=8, stages=3,
        bounds=Bounds(registers=168, shared=134144, mma="QGMMA", wide_loads=6, permutes=0),
    ),
    Configuration(
        kernel="fp8_matmul", mode="promote128", heavy=True, capability=90, latest=90,
        constants={"PROMOTE": 128, **SQUARE}, warps=8, stages=3,
        bounds=Bounds(registers=224, shared=134144, mma="QGMMA", wide_loads=6, permutes=136),
    ),
    *fast(89, 89, "QMMA", 32768, (136, 208), (12, 20)),
    *fast(100, 119, "UTCQMMA", 50176, (176, 188), (48, 56)),
    *fast(120, ANY, "QMMA", 32768, (136, 192), (12, 20)),
    Configuration(
        kernel="int8_matmul", mode=SPLIT, capability=80, latest=ANY,
        constants={**tile(64, 128, 64, descriptors=False), **IN_PARTS}, warps=4, stages=4,
        bounds=Bounds(registers=144, shared=49152, mma="IMMA", wide_loads=24, permutes=0, exact=True),
    ),
    Configuration(
        kernel="int8_matmul", mode=SPLIT, capability=90, latest=90, constants={**LOW, **IN_PARTS},
        warps=4, stages=4,
        bounds=Bounds(registers=104, shared=100352, mma="IGMMA", wide_loads=8, permutes=0, exact=True),
    ),
    Configuration(
        kernel="fp8_matmul", mode=f"fast {SPLIT}", capability=90, latest=90,
        constants={"PROMOTE": None, **LOW, **IN_PARTS}, warps=4, stages=4,
        bounds=Bounds(registers=104, shared=100352, mma="QGMMA", wide_loads=8, permutes=0),
    ),
    Configuration(
        kernel="fp8_matmul", mode=f"promote128 {SPLIT}", capability=90, latest=90,
        constants={"PROMOTE": 128, **LOW, **IN_PARTS}, warps=4, stages=4,
        bounds=Bounds(registers=152, shared=100352, mma="QGMMA", wide_loads=8, permutes=0),
    ),
    Configuration(
        kernel="product_total", capability=80, latest=ANY, constants=TOTAL, warps=4, stages=1,
        bounds=Bounds(registers=40, shared=1024, mma="", wide_loads=8, permutes=0, exact=True),
    ),
    Configuration(
        kernel="product_total", heavy=True, capability=80, latest=ANY, constants=TOTAL, warps=4, stages=1,
        bounds=Bounds(registers=40, shared=1024, mma="", wide_loads=8, permutes=8),
    ),
    walking("int8_matmul", 80, THREADS, registers=184, shared=65536, mma="IMMA", wide_loads=12, exact=True),
    walking(
        "int8_matmul", 80, THREADS, heavy=True, registers=255, shared=65536, mma="IMMA", wide_loads=12,
        permutes=40,
    ),
    walking("int8_matmul", 90, SQUARE, registers=168, shared=134144, mma="IGMMA", wide_loads=6, exact=True),
    walking(
        "int8_matmul", 90, SQUARE, heavy=True, registers=255, shared=134144, mma="IGMMA", wide_loads=12,
        permutes=40,
    ),
    walking(
        "fp8_matmul", 90, WIDE, mode="fast", registers=232, shared=184320, mma="QGMMA", wide_loads=6
    ),
    walking(
        "fp8_matmul", 90, SQUARE, mode="fast", heavy=True, registers=255, shared=134144, mma="QGMMA",
        wide_loads=12, permutes=40,
    ),
    walking(
        "fp8_matmul", 90, SQUARE, mode="promote128", registers=208, shared=134144, mma="QGMMA", wide_loads=6
    ),
)  # fmt: skip
