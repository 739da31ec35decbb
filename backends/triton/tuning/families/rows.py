"""Rows of floats to codes: an [M, K] of the type `out`, N = 0.

    quantize_rows        "int8"                     e4m3, e5m2
    quantize_by_amax     "int8"                     from maxima of rows that are known
    quantize_by_scale    "int8"                     by one scale that is known
    quantize_both        "int8 drawn ragged"        drawn: by noise; ragged: rows that begin within a counter
    norm_quantize        "int8 rms residual"        rms or layer; residual: it is added; floats: they are kept
    hadamard_quantize    "int8 256"                 numbers of a block

Maxima have no order, draws go by element, and sums of norms and Hadamard blocks are taken in an order that
neither threads nor zeros behind a row have a part in: blocks, tiles and warps are free. "float" is torch's
own kernels, one after another, which make the same codes.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from qcompiler.backends.triton.configurations import Configuration, chosen
from qcompiler.backends.triton.configurations import norms as norm_rows
from qcompiler.backends.triton.ops.held import LONGEST, configuration
from qcompiler.backends.triton.ops.quantize import configuration as configuration_of_rows
from qcompiler.backends.triton.ops.quantize import padded
from qcompiler.backends.triton.signatures import Use, both, hadamard, known, norms, rows
from qcompiler.backends.triton.tuning.families.base import (
    FLOAT,
    WIDTHS,
    Family,
    format_of,
    mode_of,
    varied,
)
from qcompiler.backends.triton.tuning.predict import Work
from qcompiler.backends.triton.tuning.problem import Problem

WARPS = (1, 2, 4, 8, 16)
PER_THREAD = (8, 16, 32, 64)  # numbers: 16 bytes at least
PER_DIVIDER = (8, 16, 32)  # where each is divided twice, which takes some hundred instructions
PARTS = (2048, 4096, 8192)  # of rows that are read twice
SHARES = (512, 1024, 2048, 4096, 8192)  # of rows of which a program takes a part, and none waits for another
SIDES = (32, 64, 128)
RAGGED = (16, 32, 64)  # where each number has a counter of its own

FORMAT = "(int8|e4m3|e5m2)"
BLOCK = "(2|4|8|16|32|64|128|256|512|1024|2048|4096)"

Default = Callable[[Problem, int], Configuration]
Blocks = Callable[[Problem], list[dict[str, Any]]]


def holding(problem: Problem) -> int:
    """The least power of two that holds a row of codes."""
    return 1 << (padded(problem.K) - 1).bit_length()


# ---------------------------------------------------------------- spaces


def of_rows(problem: Problem, capability: int) -> Configuration:
    return configuration_of_rows(padded(problem.K), capability)


def of_held(kernel: str) -> Default:
    return lambda problem, capability: configuration(kernel, padded(problem.K), capability)


def of_known(problem: Problem, capability: int) -> Configuration:
    return chosen("quantize_known", capability)


def of_both(problem: Problem, capability: int) -> Configuration:
    return chosen("quantize_both", capability, mode=mode_of(problem))


def row_blocks(problem: Problem, capability: int) -> Iterator[Configuration]:
    """Rows that a program holds are read once, others twice: by a kernel of their own."""
    whole = holding(problem)
    sizes = [whole] if whole <= LONGEST else []
    for block, warps in product([*sizes, *(size for size in PARTS if size < whole)], WARPS):
        if block // (32 * warps) in PER_THREAD:
            kernel = "quantize_rows" if block == whole else "quantize_long_rows"
            yield varied(chosen(kernel, capability), {"BLOCK": block}, warps, 1)


def shares(problem: Problem, capability: int) -> Iterator[Configuration]:
    """No longer than a row is."""
    row, longest = of_known(problem, capability), max(holding(problem), SHARES[0])
    for block, warps in product(SHARES, WARPS):
        if block <= longest and block // (32 * warps) in PER_THREAD:
            yield varied(row, {"BLOCK": block}, warps, 1)


def held_blocks(default: Default, constants: Callable[[int], dict[str, int]]) -> Any:
    """The least block that holds a row; constants: of a block of so many numbers."""

    def candidates(problem: Problem, capability: int) -> Iterator[Configuration]:
        row, block = default(problem, capability), holding(problem)
        for warps in WARPS:
            if block // (32 * warps) in PER_THREAD:
                yield varied(row, constants(block), warps, 1)

    return candidates


def tiles(problem: Problem, capability: int) -> Iterator[Configuration]:
    row = of_both(problem, capability)
    sides = RAGGED if "ragged" in mode_of(problem) else SIDES
    for m, k, warps in product(sides, sides, (4, 8)):
        if m * k // (32 * warps) in PER_DIVIDER:
            yield varied(row, {"BM": m, "BK": k}, warps, 1)


# ---------------------------------------------------------------- work


def row_work(problem: Problem, configuration: Configuration) -> Work:
    again = 0 if padded(problem.K) <= configuration.constants["BLOCK"] else WIDTHS[problem.out]
    return moved(problem, configuration, WIDTHS[problem.out] + 1, problem.M, again=again)


def known_work(problem: Problem, configuration: Configuration) -> Work:
    programs = problem.M * -(-padded(problem.K) // configuration.constants["BLOCK"])
    return moved(problem, configuration, WIDTHS[problem.out] + 1, programs)


def norm_work(problem: Problem, configuration: Configuration) -> Work:
    words, width = mode_of(problem).split(), WIDTHS[problem.out]
    return moved(
        problem, configuration, width * (1 + 2 * ("residual" in words) + ("floats" in words)) + 1, problem.M
    )


def both_work(problem: Problem, configuration: Configuration) -> Work:
    """x is read for its maxima and for its codes."""
    m, k = configuration.constants["BM"], configuration.constants["BK"]
    programs = -(-problem.M // m) * -(-problem.K // k)
    return moved(problem, configuration, 2 * WIDTHS[problem.out] + 2, programs, launches=2)


def moved(
    problem: Problem, configuration: Configuration, bytes: int, programs: int, *, again: int = 0,
    launches: int = 1,
) -> Work:  # fmt: skip
    """bytes: to and from memory for each number. again: that are read once more from L2."""
    numbers = problem.M * problem.K
    return Work(
        kind="", operations=0, bytes=bytes * numbers, l2_bytes=(bytes + again) * numbers, programs=programs,
        threads=32 * configuration.warps, shared=0, launches=launches,
    )  # fmt: skip


# ---------------------------------------------------------------- uses


def formats() -> Mapping[str, Mapping[str, float]]:
    from qcompiler.backends.triton.kernels.quantize import FORMATS

    return FORMATS


def row_use(problem: Problem) -> Use:
    format = format_of(problem)
    return Use(types=rows.types(f"*{problem.out}", rows.POINTERS[format]), constants=formats()[format])


def known_use(problem: Problem) -> Use:
    format = format_of(problem)
    by_row = problem.op == "quantize_by_amax"
    types = known.types(f"*{problem.out}", rows.POINTERS[format], by_row=by_row)
    return Use(types=types, constants=formats()[format])


def both_use(problem: Problem) -> Use:
    return both.use(f"*{problem.out}", format_of(problem), drawn="drawn" in mode_of(problem))


def norm_use(problem: Problem) -> Use:
    format, words = format_of(problem), mode_of(problem).split()
    types = norms.types(
        f"*{problem.out}", rows.POINTERS[format], centred="layer" in words, residual="residual" in words,
        floats="floats" in words,
    )  # fmt: skip
    return Use(types=types, constants={"CENTRED": "layer" in words, **formats()[format]})


def hadamard_use(problem: Problem) -> Use:
    format, levels = format_of(problem), int(mode_of(problem)).bit_length() - 1
    types = hadamard.types(f"*{problem.out}", rows.POINTERS[format])
    return Use(types=types, constants={"LEVELS": levels, **formats()[format]})


# ---------------------------------------------------------------- the families


def held(
    kernel: str,
    constants: Callable[[int], dict[str, int]],
    work: Any,
    use: Callable[[Problem], Use],
    schemes: str,
) -> Family:
    return Family(
        kernel=kernel, default=of_held(kernel), space=held_blocks(of_held(kernel), constants), work=work,
        use=use, peers=(FLOAT,), schemes=schemes,
    )  # fmt: skip


ROWS: Mapping[str, Family] = {
    "quantize_rows": Family(
        kernel="quantize_rows", default=of_rows, space=row_blocks, work=row_work, use=row_use,
        peers=(FLOAT,), schemes=FORMAT,
    ),
    **dict.fromkeys(
        ("quantize_by_amax", "quantize_by_scale"),
        Family(
            kernel="quantize_known", default=of_known, space=shares, work=known_work, use=known_use,
            peers=(FLOAT,), schemes=FORMAT,
        ),
    ),
    "quantize_both": Family(
        kernel="quantize_both", default=of_both, space=tiles, work=both_work, use=both_use, peers=(FLOAT,),
        schemes=f"{FORMAT}( drawn( ragged)?)?",
    ),
    "norm_quantize": held(
        "norm_quantize", lambda block: norm_rows.block(block.bit_length() - 1), norm_work, norm_use,
        f"{FORMAT} (rms|layer)( residual)?( floats)?",
    ),
    "hadamard_quantize": held(
        "hadamard_quantize", lambda block: {"BLOCK": block}, row_work, hadamard_use, f"{FORMAT} {BLOCK}"
    ),
}  # fmt: skip
