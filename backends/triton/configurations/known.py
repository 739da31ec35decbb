"""Floats to codes by scales that are known before: a program takes a part of a row."""

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration

KNOWN: tuple[Configuration, ...] = (
    Configuration(
        kernel="quantize_known", capability=80, latest=ANY, constants={"BLOCK": 2048}, warps=4, stages=1,
        bounds=Bounds(registers=40, shared=1024, mma="", wide_loads=2, permutes=24, exact=True),
    ),
)  # fmt: skip
