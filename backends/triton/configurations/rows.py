"""Rows of floats to codes."""

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration

ROWS: tuple[Configuration, ...] = (
    Configuration(
        kernel="quantize_rows", capability=80, latest=ANY, constants={"BLOCK": 4096}, warps=8, stages=1,
        bounds=Bounds(registers=40, shared=1024, mma="", wide_loads=2, permutes=24, exact=True),
    ),
    Configuration(
        kernel="quantize_long_rows", capability=80, latest=ANY, constants={"BLOCK": 4096}, warps=8, stages=1,
        bounds=Bounds(registers=48, shared=1024, mma="", wide_loads=4, permutes=32, exact=True),
    ),
)  # fmt: skip
