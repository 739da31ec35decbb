"""FP8 with a scale for each block of 128: "e4m3", of the product and of what makes the codes of rows.

A block is as deep as its scales say, and all of a tile's columns are within one block of the weight: what is
left to choose is how many rows and columns, beside warps and stages.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

from qcompiler.backends.triton.configurations import SHARED, Configuration, chosen
from qcompiler.backends.triton.configurations.blocks import tile
from qcompiler.backends.triton.ops.blocks import SIDE, blocks_of
from qcompiler.backends.triton.signatures import Use
from qcompiler.backends.triton.signatures import blocks as signatures
from qcompiler.backends.triton.tuning.families import products, rows
from qcompiler.backends.triton.tuning.families.base import FLOAT, SUMS, WIDTHS, Family, varied
from qcompiler.backends.triton.tuning.predict import Work
from qcompiler.backends.triton.tuning.problem import Problem

HEIGHTS = (64, 128, 256)
WIDTHS_OF_TILES = (64, 128)
ROWS_OF_BLOCKS = (8, 16, 32, 64)
SCALE = 4  # bytes


def default(problem: Problem, capability: int) -> Configuration:
    return chosen("fp8_block_matmul", capability, heavy=problem.heavy)


def tiles(problem: Problem, capability: int) -> Iterator[Configuration]:
    """A thread has partial sums beside the sums, hence half as many as of other products."""
    if capability != 90:
        return
    row = default(problem, capability)
    for m, n, warps, stages in product(HEIGHTS, WIDTHS_OF_TILES, (4, 8), (3, 4, 5)):
        if 2 * m * n <= SUMS * 32 * warps and stages * (m + n) * SIDE <= SHARED[90]:
            yield varied(row, tile(m, n), warps, stages)


def product_work(problem: Problem, configuration: Configuration) -> Work:
    """That of any product, and the scales."""
    found = products.work(problem, configuration)
    scales = SCALE * blocks_of(problem.K) * (problem.M + blocks_of(problem.N))
    return replace(found, bytes=found.bytes + scales)


def product_use(problem: Problem) -> Use:
    activation = "gelu" if problem.heavy else "none"
    return signatures.product_use(f"*{problem.out}", activation, residual=problem.heavy)


def default_rows(problem: Problem, capability: int) -> Configuration:
    return chosen("quantize_blocks", capability)


def row_blocks(problem: Problem, capability: int) -> Iterator[Configuration]:
    if capability < 89:
        return
    row = default_rows(problem, capability)
    for m, warps in product(ROWS_OF_BLOCKS, (1, 2, 4, 8)):
        if m * SIDE // (32 * warps) in rows.PER_THREAD:
            yield varied(row, {"BM": m}, warps, 1)


def row_work(problem: Problem, configuration: Configuration) -> Work:
    programs = -(-problem.M // configuration.constants["BM"]) * blocks_of(problem.K)
    found = rows.moved(problem, configuration, WIDTHS[problem.out] + 1, programs)
    return replace(found, bytes=found.bytes + SCALE * problem.M * blocks_of(problem.K))


BLOCKS: Mapping[str, Family] = {
    "fp8_block_linear": Family(
        kernel="fp8_block_matmul", default=default, space=tiles, work=product_work, use=product_use,
        peers=(FLOAT, "scaled_mm"), schemes="e4m3",
    ),
    "quantize_blocks": Family(
        kernel="quantize_blocks", default=default_rows, space=row_blocks, work=row_work,
        use=lambda problem: signatures.quantize_use(f"*{problem.out}"), peers=(FLOAT,), schemes="e4m3",
    ),
}  # fmt: skip
