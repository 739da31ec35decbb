"""FP8 with a scale for each block of 128: what makes the codes, and the product.

A thread holds partial sums beside what they are added to, so that a tile has at most 64 of them for each.
Codes are made on 8.9 and later, and multiplied on 9.0.
"""

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration


def tile(m: int, n: int) -> dict[str, int]:
    """BK is the block. GROUP: rows of tiles that are walked down before the next column of them."""
    return {"BM": m, "BN": n, "BK": 128, "GROUP": 8}


BLOCKS: tuple[Configuration, ...] = (
    Configuration(
        kernel="quantize_blocks", capability=89, latest=ANY, constants={"BM": 32}, warps=4, stages=1,
        bounds=Bounds(
            registers=64, shared=1024, mma="", wide_loads=4, wide_stores=2, permutes=24, exact=True
        ),
    ),
    Configuration(
        kernel="fp8_block_matmul", capability=90, latest=90, constants=tile(128, 128), warps=8, stages=3,
        bounds=Bounds(registers=168, shared=100352, mma="QGMMA", wide_loads=6, permutes=0),
    ),
    Configuration(
        kernel="fp8_block_matmul", heavy=True, capability=90, latest=90, constants=tile(128, 128), warps=8,
        stages=3,
        bounds=Bounds(registers=192, shared=100352, mma="QGMMA", wide_loads=6, permutes=32),
    ),
)  # fmt: skip
