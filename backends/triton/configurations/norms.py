"""Rows normalised, to codes: a program holds a whole row, of up to 4,096 or 16,384 numbers."""

from qcompiler.backends.triton.configurations.base import ANY, Bounds, Configuration


def block(levels: int) -> dict[str, int]:
    """LEVELS: how often neighbours are added until there is one sum."""
    return {"BLOCK": 2**levels, "LEVELS": levels}


NORMS: tuple[Configuration, ...] = (
    Configuration(
        kernel="norm_quantize", capability=80, latest=ANY, constants=block(12), warps=8, stages=1,
        bounds=Bounds(registers=56, shared=8192, mma="", wide_loads=6, permutes=40, exact=True),
    ),
    Configuration(
        kernel="norm_quantize", mode="wide", capability=80, latest=ANY, constants=block(14), warps=16,
        stages=1,
        bounds=Bounds(registers=92, shared=16384, mma="", wide_loads=12, permutes=80, exact=True),
    ),
)  # fmt: skip
