"""Products of floats with weights of few bits, "w4h_g128 zeros gated": zeros and gated where there are.

The order in which groups are added depends on the sizes alone (`ops.weight_only`): into how many parts they
are split, and how many lanes there are for one row, no candidate may change. Within a group one row's sums
are laid out over threads, each of which reads 16 bytes of one group: a candidate that gave threads less would
add in another order. `weight_only_total` has one configuration, whose work is small.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

from qcompiler.backends.triton.configurations import SHARED, Configuration
from qcompiler.backends.triton.layouts import LAYOUTS, Layout, layout_named
from qcompiler.backends.triton.ops.weight_only import LONG, parts_of, product_for
from qcompiler.backends.triton.ops.weight_only import mode_of as mode_of_rows
from qcompiler.backends.triton.signatures import Use
from qcompiler.backends.triton.signatures import weight_only as signatures
from qcompiler.backends.triton.tuning.families.base import (
    FLOAT,
    SUMS,
    WIDTHS,
    Family,
    format_of,
    mode_of,
    varied,
)
from qcompiler.backends.triton.tuning.predict import Work
from qcompiler.backends.triton.tuning.problem import Problem

HEIGHTS = {"few": (16,), "some": (32, 64), "many": (64, 128)}
STAGES = {"few": (3, 4, 6, 8), "some": (2, 3, 4), "many": (2, 3, 4)}


def layout_of(problem: Problem) -> Layout:
    return layout_named(format_of(problem))


def is_gated(problem: Problem) -> bool:
    return "gated" in mode_of(problem).split()


def has_zeros(problem: Problem) -> bool:
    return "zeros" in mode_of(problem).split()


def activation_of(problem: Problem) -> str:
    """That with which a problem is measured."""
    return "none" if not problem.heavy else "silu" if is_gated(problem) else "gelu"


def adds(problem: Problem) -> bool:
    """Whether it is measured with a residual: a gate has none, since it is another linear that reads it."""
    return problem.heavy and not is_gated(problem)


def default(problem: Problem, capability: int) -> Configuration:
    """On 8.0 code for bfloat16 may seem inexact: a difference is an `fma` there, which rounds nothing.

    Tiles of short groups have too few bytes side by side for loads of 16 bytes a thread.
    """
    layout = layout_of(problem)
    row = product_for(problem.M, layout, capability, problem.heavy or is_gated(problem))
    is_short = row.kernel == "weight_only_gemm" and layout.bytes < LONG
    bounds = replace(
        row.bounds, exact=row.bounds.exact and row.capability >= 90,
        wide_loads=0 if is_short else row.bounds.wide_loads,
    )  # fmt: skip
    return replace(row, bounds=bounds)


def candidates(problem: Problem, capability: int) -> Iterator[Configuration]:
    row, layout = default(problem, capability), layout_of(problem)
    mode = mode_of_rows(problem.M)
    if mode == "gemv":
        for n, warps in product((2, 4, 8, 16), (1, 2, 4)):
            if n * layout.bits >= 4 * warps:  # 16 bytes for each thread, of the bytes of RUN k
                yield varied(row, {"BN": n}, warps, row.stages)
        return
    sums = 4 if is_gated(problem) else 2  # of all groups and of one, twice with a gate
    for m, n, warps, stages in product(HEIGHTS[mode], (64, 128), (4, 8), STAGES[mode]):
        shared = stages * tile_bytes(m, n, layout)
        if sums * m * n <= SUMS * 32 * warps and shared <= SHARED[row.capability]:
            yield varied(row, {"BM": m, "BN": n}, warps, stages)


def tile_bytes(m: int, n: int, layout: Layout) -> int:
    """Of a group: x in 16 bits and codes."""
    return 2 * m * layout.group + n * layout.bytes


def work(problem: Problem, configuration: Configuration) -> Work:
    """The weight once, x and the result once, parts of sums twice; tiles from L2."""
    layout, gate = layout_of(problem), 1 + is_gated(problem)
    M, N, K, width = problem.M, problem.N, problem.K, WIDTHS[problem.out]
    m, n = configuration.constants.get("BM", 1), configuration.constants["BN"]
    parts, tiles = parts_of(M, N, K, layout), -(-M // m) * -(-N // n)
    groups = gate * N * K // layout.group
    weight = groups * (layout.bytes + 2 + has_zeros(problem))
    result = M * N * width * (1 + adds(problem))
    sums = 2 * 4 * parts * M * N * gate if parts > 1 else 0
    is_line = mode_of_rows(M) == "gemv"
    return Work(
        kind="" if is_line else "bf16", operations=2.0 * tiles * m * n * gate * K,
        bytes=weight + 2 * M * K + result + sums,
        l2_bytes=tiles * (gate * n * K * layout.bits / 8 + 2 * m * K) + result + sums,
        programs=tiles * parts, threads=32 * configuration.warps,
        shared=0 if is_line else configuration.stages * tile_bytes(m, n, layout), launches=1 + (parts > 1),
    )  # fmt: skip


def use(problem: Problem) -> Use:
    """x is of the result's type where that has 16 bits, and else bfloat16."""
    layout = layout_of(problem)
    is_split = parts_of(problem.M, problem.N, problem.K, layout) > 1
    types = signatures.types(
        "*bf16" if problem.out == "fp32" else f"*{problem.out}", zeros=has_zeros(problem),
        residual=adds(problem), out="*fp32" if is_split else f"*{problem.out}",
    )  # fmt: skip
    return signatures.use(
        layout.name, types, activation=activation_of(problem), gated=is_gated(problem), split=is_split,
        line=problem.M == 1,
    )  # fmt: skip


WEIGHT_ONLY: Mapping[str, Family] = {
    "weight_only_linear": Family(
        kernel="weight_only_gemm",
        default=default,
        space=candidates,
        work=work,
        use=use,
        peers=(FLOAT, "dequantized"),
        schemes=f"({'|'.join(LAYOUTS)})( zeros)?( gated)?",
    )
}
