"""What a family of kernels says of itself.

A candidate computes the numbers of any other: what it may vary are tiles, warps and stages, and nothing that
sums or draws depend on. Sums of FP8 may be in parts (`families.products`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qcompiler.backends.triton.configurations import SHARED, Configuration
from qcompiler.backends.triton.signatures import Use
from qcompiler.backends.triton.tuning.predict import Work
from qcompiler.backends.triton.tuning.problem import Problem

FLOAT = "float"  # the same without kernels of ours, which all ratios are taken to
WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4}
REGISTERS = 255  # of a thread, at most
SUMS = 128  # of one thread, at most: it has 255 registers
UNBOUNDED = 10**6


@dataclass(frozen=True, kw_only=True)
class Family:
    """kernel: its name. default: the row of the tables; TargetError where a device has none.

    peers: what computes the same by a vendor's kernels, "float" among them. schemes: a pattern of those that
    its ops ask for.
    """

    kernel: str
    default: Callable[[Problem, int], Configuration]
    space: Callable[[Problem, int], Iterator[Configuration]]
    work: Callable[[Problem, Configuration], Work]
    use: Callable[[Problem], Use]
    peers: tuple[str, ...]
    schemes: str = ".+"


def mode_of(problem: Problem) -> str:
    """What follows the scheme's first word: "e4m3 promote128"  -->  promote128"""
    return problem.scheme.partition(" ")[2]


def format_of(problem: Problem) -> str:
    """The scheme's first word: "e4m3 promote128"  -->  e4m3"""
    return problem.scheme.partition(" ")[0]


def varied(row: Configuration, constants: Mapping[str, Any], warps: int, stages: int) -> Configuration:
    """The row with other constants."""
    return replace(loosened(row), constants={**row.constants, **constants}, warps=warps, stages=stages)


def loosened(row: Configuration) -> Configuration:
    """The row, whose machine code must be like that of its uses in the tables, but may need more."""
    bounds = replace(
        row.bounds, registers=REGISTERS, shared=SHARED[row.capability], permutes=UNBOUNDED,
        wide_loads=min(row.bounds.wide_loads, 1), wide_stores=0,
    )  # fmt: skip
    return replace(row, bounds=bounds)
