"""Who can answer a problem: the kernel of an op, the configurations it has, and what else computes the same.

A family is a row; a kernel whose configuration shall be measured gets one, in a file of its own.
"""

import re
from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.ops.alignment import MULTIPLE
from qcompiler.backends.triton.tuning.families.base import FLOAT, WIDTHS, Family, loosened, mode_of
from qcompiler.backends.triton.tuning.families.blocks import BLOCKS
from qcompiler.backends.triton.tuning.families.products import KINDS, PRODUCTS
from qcompiler.backends.triton.tuning.families.rows import ROWS
from qcompiler.backends.triton.tuning.families.weight_only import WEIGHT_ONLY
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.errors import InputError, TargetError

__all__ = [
    "BLOCKS",
    "FAMILIES",
    "FLOAT",
    "KINDS",
    "PRODUCTS",
    "ROWS",
    "WEIGHT_ONLY",
    "WIDTHS",
    "Family",
    "check",
    "family_of",
    "mode_of",
    "space",
    "written",
]

CODES_OF_ROWS = frozenset({*ROWS, "quantize_blocks"})  # ops without outputs N
PRODUCTS_OF_CODES = frozenset({*PRODUCTS, "fp8_block_linear"})
FAMILIES: Mapping[str, Family] = {**PRODUCTS, **BLOCKS, **WEIGHT_ONLY, **ROWS}
"""By op."""


def space(problem: Problem, capability: int) -> list[Configuration]:
    """All configurations of a problem on a device of a compute capability, that of the tables first."""
    family = family_of(problem)
    found: dict[str, Configuration] = {}
    for one in (*tabled(family, problem, capability), *family.space(problem, capability)):
        found.setdefault(written(one), one)
    return [*found.values()]


def tabled(family: Family, problem: Problem, capability: int) -> tuple[Configuration, ...]:
    """What runs where nothing was measured; nothing where the device has no such kernel."""
    try:
        return (loosened(family.default(problem, capability)),)
    except TargetError:
        return ()


def family_of(problem: Problem) -> Family:
    if problem.op not in FAMILIES:
        raise InputError(f"nothing is known of '{problem.op}'", fix=f"ask for one of {', '.join(FAMILIES)}")
    return FAMILIES[problem.op]


def check(problem: Problem) -> None:
    """InputError for what no op asks: another scheme or type, or sizes of another kind of op."""
    family = family_of(problem)
    if not re.fullmatch(family.schemes, problem.scheme):
        raise InputError(
            f"{problem.op} has no scheme '{problem.scheme}'", why=f"its schemes are {family.schemes}"
        )
    if problem.out not in WIDTHS:
        raise InputError(f"nothing tunes results in {problem.out}", fix=f"use one of {', '.join(WIDTHS)}")
    if problem.M < 1 or (problem.op in PRODUCTS_OF_CODES and problem.K % MULTIPLE):
        raise InputError(
            f"no op asks for '{problem.text}'",
            why=f"there is a row at least, and rows of codes hold a multiple of {MULTIPLE}",
            fix=f"give M, and K rounded up to a multiple of {MULTIPLE}",
        )
    if (problem.op in CODES_OF_ROWS) != (problem.N == 0):
        raise InputError(
            f"'{problem.text}' has {'an' if problem.N else 'no'} N",
            why="products have outputs, M, N and K, and codes of rows have M and K",
        )


def written(configuration: Configuration) -> str:
    """As the text of a row: "BM 128, BN 256, BK 128, GROUP 8, DESCRIPTORS True, warps 8, stages 3"."""
    told = {**configuration.constants, "warps": configuration.warps, "stages": configuration.stages}
    return ", ".join(f"{name} {value}" for name, value in told.items())
