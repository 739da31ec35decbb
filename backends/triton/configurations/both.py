"""A matrix to codes in both orders.

A thread divides each of its numbers twice, and divisions of IEEE 754 are long: 16 numbers of a thread take
1,500 instructions, and those of a tile of 128 x 128 would no longer lie in an instruction cache.
"""

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration

BOTH: tuple[Configuration, ...] = (
    Configuration(
        kernel="amax_both", capability=80, latest=ANY, constants={"BM": 128, "BK": 128}, warps=8, stages=1,
        bounds=Bounds(registers=88, shared=4096, mma="", wide_loads=8, permutes=96, exact=True),
    ),
    Configuration(
        kernel="quantize_both", capability=80, latest=ANY, constants={"BM": 64, "BK": 64}, warps=8, stages=1,
        bounds=Bounds(registers=72, shared=4096, mma="", wide_loads=6, permutes=56, exact=True),
    ),
)  # fmt: skip
