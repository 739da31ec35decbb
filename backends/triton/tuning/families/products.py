"""Products of codes: sums of int8 are exact, and FP8 is promoted after as many k as the mode says.

Tiles are free, as long as a tile is not less deep than what is promoted at once.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from qcompiler.backends.triton.configurations import Bounds, Configuration, chosen, shared_of
from qcompiler.backends.triton.configurations.products import tile
from qcompiler.backends.triton.signatures import Use
from qcompiler.backends.triton.signatures import products as signatures
from qcompiler.backends.triton.tuning.families.base import (
    FLOAT,
    REGISTERS,
    SUMS,
    UNBOUNDED,
    WIDTHS,
    Family,
    mode_of,
)
from qcompiler.backends.triton.tuning.predict import Work
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.errors import TargetError

SIDES = (64, 128, 256)
DEPTHS = (64, 128)
PROMOTES: Mapping[str, Mapping[str, Any]] = {"fast": {"PROMOTE": None}, "promote128": {"PROMOTE": 128}}
KINDS = {"int8_matmul": "int8", "fp8_matmul": "fp8", "fp8_block_matmul": "fp8"}


def space(kernel: str) -> Callable[[Problem, int], Iterator[Configuration]]:
    """Tiles, warps and stages that may fit; what they need is known when they are compiled."""

    def candidates(problem: Problem, capability: int) -> Iterator[Configuration]:
        mode = mode_of(problem)
        try:
            row = chosen(kernel, capability, mode=mode, heavy=problem.heavy)
        except TargetError:
            return
        bounds = limits(capability, row.bounds.mma)
        by_descriptors = row.constants["DESCRIPTORS"]
        for m, n, k, warps, stages in product(SIDES, SIDES, DEPTHS, (4, 8), (3, 4)):
            constants = {**PROMOTES.get(mode, {}), **tile(m, n, k, descriptors=by_descriptors)}
            is_held = m * n <= SUMS * 32 * warps and stages * (m + n) * k <= bounds.shared
            if is_held and k >= (constants.get("PROMOTE") or 0):
                yield Configuration(
                    kernel=kernel, mode=mode, heavy=problem.heavy, capability=row.capability,
                    latest=row.latest, constants=constants, warps=warps, stages=stages, bounds=bounds,
                )  # fmt: skip

    return candidates


def limits(capability: int, mma: str) -> Bounds:
    """What no candidate may need more of, and must have: nothing is known of it that would be tighter."""
    return Bounds(
        registers=REGISTERS, shared=shared_of(capability), mma=mma, wide_loads=1, permutes=UNBOUNDED
    )


def work(problem: Problem, configuration: Configuration) -> Work:
    """Codes once, the result once, and a residual where the epilogue is heavy; tiles from L2."""
    sizes, width = configuration.constants, WIDTHS[problem.out]
    m, n, k = sizes["BM"], sizes["BN"], sizes["BK"]
    programs = -(-problem.M // m) * -(-problem.N // n)
    depth = -(-problem.K // k) * k
    result = problem.M * problem.N * width * (2 if problem.heavy else 1)
    return Work(
        kind=KINDS[configuration.kernel], operations=2.0 * programs * m * n * depth,
        bytes=(problem.M + problem.N) * problem.K + result, l2_bytes=programs * (m + n) * depth + result,
        programs=programs, threads=32 * configuration.warps, shared=configuration.stages * (m + n) * k,
    )  # fmt: skip


def use(kernel: str) -> Callable[[Problem], Use]:
    def of(problem: Problem) -> Use:
        out = f"*{problem.out}"
        types = signatures.types(
            signatures.CODES[kernel], out, bias=True, residual=out if problem.heavy else None
        )
        return Use(types=types, constants={"ACTIVATION": "gelu" if problem.heavy else "none"})

    return of


def family(kernel: str, peer: str, schemes: str) -> Family:
    def default(problem: Problem, capability: int) -> Configuration:
        return chosen(kernel, capability, mode=mode_of(problem), heavy=problem.heavy)

    return Family(
        kernel=kernel, default=default, space=space(kernel), work=work, use=use(kernel), peers=(FLOAT, peer),
        schemes=schemes,
    )  # fmt: skip


PRODUCTS: Mapping[str, Family] = {
    "int8_linear": family("int8_matmul", "int_mm", "int8"),
    "fp8_linear": family("fp8_matmul", "scaled_mm", "e4m3 (fast|promote128)"),
}
