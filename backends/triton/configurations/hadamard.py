"""Blocks of rows turned, to codes: a program holds a whole row, of up to 4,096 or 16,384 numbers."""

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration

HADAMARD: tuple[Configuration, ...] = (
    Configuration(
        kernel="hadamard_quantize", capability=80, latest=ANY, constants={"BLOCK": 4096}, warps=8, stages=1,
        bounds=Bounds(registers=72, shared=16384, mma="", wide_loads=2, permutes=40, exact=True),
    ),
    Configuration(
        kernel="hadamard_quantize", mode="wide", capability=80, latest=ANY, constants={"BLOCK": 16384},
        warps=16, stages=1,
        bounds=Bounds(registers=72, shared=1024, mma="", wide_loads=4, permutes=80, exact=True),
    ),
)  # fmt: skip
