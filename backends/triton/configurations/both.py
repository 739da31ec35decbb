"""A matrix to codes in both orders.

A thread divides each of its numbers twice, and divisions of IEEE 754 are long: 16 numbers of a thread take
1,500 instructions, and those of a tile of 128 x 128 would no longer lie in an instruction cache.
"""

from typing import Any

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration


def tile(m: int, k: int, *, even: bool = True) -> dict[str, Any]:
    """EVEN: whether four neighbours share a counter of their draws, and not each has its own."""
    return {"BM": m, "BK": k, "EVEN": even}


BOTH: tuple[Configuration, ...] = (
    Configuration(
        kernel="amax_both", capability=80, latest=ANY, constants={"BM": 128, "BK": 128}, warps=8, stages=1,
        bounds=Bounds(registers=88, shared=4096, mma="", wide_loads=8, permutes=96, exact=True),
    ),
    Configuration(
        kernel="quantize_both", capability=80, latest=ANY, constants=tile(64, 64), warps=8, stages=1,
        bounds=Bounds(registers=72, shared=4096, mma="", wide_loads=6, permutes=56, exact=True),
    ),
    Configuration(
        kernel="quantize_both", mode="drawn", capability=80, latest=ANY, constants=tile(64, 64), warps=8,
        stages=1,
        bounds=Bounds(registers=112, shared=8192, mma="", wide_loads=6, permutes=56, exact=True),
    ),
    Configuration(
        kernel="quantize_both", mode="drawn ragged", capability=80, latest=ANY,
        constants=tile(32, 32, even=False), warps=4, stages=1,
        bounds=Bounds(registers=136, shared=4096, mma="", wide_loads=3, permutes=24, exact=True),
    ),
)  # fmt: skip
