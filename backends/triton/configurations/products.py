"""Products of codes of 8 bits.

A heavy epilogue, GELU or a residual, holds so much at once that a thread has registers for 64 sums and not
for 128: with tiles of 128 x 256 it spills. What hands on codes, or maxima, packs them by permutations of
bytes: the other rows, of the same loop, tell whether operands are in order.
"""

from typing import Any

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration


def tile(m: int, n: int, k: int, *, descriptors: bool) -> dict[str, Any]:
    """GROUP: rows of tiles that are walked down before the next column of them."""
    return {"BM": m, "BN": n, "BK": k, "GROUP": 8, "DESCRIPTORS": descriptors}


THREADS = tile(128, 128, 64, descriptors=False)
WIDE = tile(128, 256, 128, descriptors=True)
SQUARE = tile(128, 128, 128, descriptors=True)

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
        bounds=Bounds(registers=208, shared=134144, mma="QGMMA", wide_loads=6, permutes=136),
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
)  # fmt: skip
