"""Attention over a cache of 8-bit codes, "wide" where heads have more than 128 numbers.

E4M3 needs a device that converts it: 8.9 and later.
"""

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration

ATTENTION: tuple[Configuration, ...] = (
    Configuration(
        kernel="decode_parts", capability=80, latest=ANY, constants={}, warps=4, stages=3,
        bounds=Bounds(registers=224, shared=49152, mma="HMMA", wide_loads=12, permutes=160),
    ),
    Configuration(
        kernel="decode_parts", mode="e4m3", capability=89, latest=ANY, constants={}, warps=4, stages=3,
        bounds=Bounds(registers=192, shared=49152, mma="HMMA", wide_loads=12, permutes=16),
    ),
    Configuration(
        kernel="decode_parts", mode="wide", capability=80, latest=ANY, constants={}, warps=8, stages=3,
        bounds=Bounds(registers=192, shared=81920, mma="HMMA", wide_loads=12, permutes=160),
    ),
    Configuration(
        kernel="decode_parts", mode="e4m3 wide", capability=89, latest=ANY, constants={}, warps=8, stages=3,
        bounds=Bounds(registers=176, shared=81920, mma="HMMA", wide_loads=12, permutes=16),
    ),
    Configuration(
        kernel="decode_combined", capability=80, latest=ANY, constants={}, warps=1, stages=1,
        bounds=Bounds(registers=56, shared=1024, mma="", wide_loads=4, permutes=8),
    ),
    Configuration(
        kernel="append_kv", capability=80, latest=ANY, constants={"BLOCK": 8}, warps=4, stages=1,
        bounds=Bounds(registers=48, shared=1024, mma="", wide_loads=1, permutes=24, exact=True),
    ),
    Configuration(
        kernel="append_kv", mode="e4m3", capability=89, latest=ANY, constants={"BLOCK": 8}, warps=4, stages=1,
        bounds=Bounds(registers=48, shared=1024, mma="", wide_loads=1, permutes=24, exact=True),
    ),
)  # fmt: skip
