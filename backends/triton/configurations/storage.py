"""Activations and masks in few bits, and draws: a thread has elements for loads or stores of 16 bytes.

What is stored in 2 bits or 1 is read in 8 or 4 bytes a thread: it is an eighth of what is written, or less.
"""

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration

STORAGE: tuple[Configuration, ...] = (
    Configuration(
        kernel="store", capability=80, latest=ANY, constants={"GROUPS": 8}, warps=4, stages=1,
        bounds=Bounds(registers=72, shared=2048, mma="", wide_loads=2, permutes=32, exact=True),
    ),
    Configuration(
        kernel="recall", capability=80, latest=ANY, constants={"GROUPS": 16}, warps=4, stages=1,
        bounds=Bounds(
            registers=96, shared=4096, mma="", wide_loads=0, wide_stores=4, permutes=96, exact=True
        ),
    ),
    Configuration(
        kernel="store_mask", capability=80, latest=ANY, constants={"BYTES": 512}, warps=4, stages=1,
        bounds=Bounds(registers=64, shared=1024, mma="", wide_loads=2, permutes=128, exact=True),
    ),
    Configuration(
        kernel="recall_mask", capability=80, latest=ANY, constants={"BYTES": 512}, warps=4, stages=1,
        bounds=Bounds(
            registers=64, shared=1024, mma="", wide_loads=0, wide_stores=2, permutes=80, exact=True
        ),
    ),
    Configuration(
        kernel="draws", capability=80, latest=ANY, constants={"BLOCK": 1024}, warps=4, stages=1,
        bounds=Bounds(
            registers=32, shared=1024, mma="", wide_loads=0, wide_stores=2, permutes=16, exact=True
        ),
    ),
)  # fmt: skip
