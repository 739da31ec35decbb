"""Products of codes: sums of int8 are exact, and FP8 is promoted after as many k as the mode says.

Tiles are free, as long as a tile is not less deep than what is promoted at once.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from qcompiler.backends.triton.configurations import SHARED, Bounds, Configuration, chosen
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

SIDES = (64, 128, 256)
DEPTHS = (64, 128)
MMA = {"int8_matmul": {80: "IMMA", 90: "IGMMA"}, "fp8_matmul": {90: "QGMMA"}}
PROMOTES: Mapping[str, Mapping[str, Any]] = {"fast": {"PROMOTE": None}, "promote128": {"PROMOTE": 128}}
KINDS = {"int8_matmul": "int8", "fp8_matmul": "fp8"}


def space(kernel: str) -> Callable[[Problem, int], Iterator[Configuration]]:
    """Tiles, warps and stages that may fit; what they need is known when they are compiled."""

    def candidates(problem: Problem, capability: int) -> Iterator[Configuration]:
        generation = 90 if capability == 90 else 80  # wgmma is Hopper's alone; the others have mma.sync
        if generation not in MMA[kernel] or capability < generation:
            return
        mode, bounds = mode_of(problem), limits(generation, MMA[kernel][generation])
        for m, n, k, warps, stages in product(SIDES, SIDES, DEPTHS, (4, 8), (3, 4)):
            constants = {**PROMOTES.get(mode, {}), **tile(m, n, k, descriptors=generation == 90)}
            is_held = m * n <= SUMS * 32 * warps and stages * (m + n) * k <= bounds.shared
            if is_held and k >= (constants.get("PROMOTE") or 0):
                yield Configuration(
                    kernel=kernel, mode=mode, heavy=problem.heavy, capability=generation, latest=capability,
                    constants=constants, warps=warps, stages=stages, bounds=bounds,
                )  # fmt: skip

    return candidates


def limits(capability: int, mma: str) -> Bounds:
    """What no candidate may need more of, and must have: nothing is known of it that would be tighter."""
    return Bounds(registers=REGISTERS, shared=SHARED[capability], mma=mma, wide_loads=1, permutes=UNBOUNDED)


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


def family(kernel: str, peer: str) -> Family:
    def default(problem: Problem, capability: int) -> Configuration:
        return chosen(kernel, capability, mode=mode_of(problem), heavy=problem.heavy)

    return Family(
        kernel=kernel, default=default, space=space(kernel), work=work, use=use(kernel), peers=(FLOAT, peer)
    )


PRODUCTS: Mapping[str, Family] = {
    "int8_linear": family("int8_matmul", "int_mm"),
    "fp8_linear": family("fp8_matmul", "scaled_mm"),
}
