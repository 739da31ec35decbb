"""Products of codes: sums of int8 are exact, and FP8 is promoted after as many k as the mode says.

Tiles are free, as long as a tile is not less deep than what is promoted at once. Where tiles are fewer than
a device has processors, K may be in parts; where they are more, programs may walk over them. int8 is the
same to the bit in any of these ways; sums of FP8 are grouped by the parts, within the same bound.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from qcompiler.backends.triton.configurations import Bounds, Configuration, chosen, shared_of
from qcompiler.backends.triton.configurations.products import tile
from qcompiler.backends.triton.signatures import Use
from qcompiler.backends.triton.signatures import products as signatures
from qcompiler.backends.triton.tuning.device import DEVICES
from qcompiler.backends.triton.tuning.families.base import (
    FLOAT,
    REGISTERS,
    SUMS,
    UNBOUNDED,
    WIDTHS,
    Family,
    mode_of,
)
from qcompiler.backends.triton.tuning.predict import FILE, Work
from qcompiler.backends.triton.tuning.predict import REGISTERS as TYPICAL
from qcompiler.backends.triton.tuning.problem import LARGEST, Problem
from qcompiler.errors import TargetError

SIDES = (64, 128, 256)
DEPTHS = (64, 128)
PROMOTES: Mapping[str, Mapping[str, Any]] = {"fast": {"PROMOTE": None}, "promote128": {"PROMOTE": 128}}
KINDS = {"int8_matmul": "int8", "fp8_matmul": "fp8", "fp8_block_matmul": "fp8"}

PARTS = (2, 4, 8)
SHORTEST = 512  # k of a part: loads of a pipeline are waited for once in each
PROCESSORS = min(device.processors for device in DEVICES)  # of the smallest that is known
SUM = 4  # bytes, of int32 as of float32
LARGE = 128 * 128  # numbers of a tile from which on what it ends with takes long enough to be hidden


def space(kernel: str) -> Callable[[Problem, int], Iterator[Configuration]]:
    """Tiles, warps and stages that may fit; what they need is known when they are compiled."""

    def candidates(problem: Problem, capability: int) -> Iterator[Configuration]:
        mode = mode_of(problem)
        try:
            row = chosen(kernel, capability, mode=mode, heavy=problem.heavy)
        except TargetError:
            return
        by_descriptors = row.constants["DESCRIPTORS"]
        for m, n, k, warps, stages in product(SIDES, SIDES, DEPTHS, (4, 8), (3, 4)):
            constants = {**PROMOTES.get(mode, {}), **tile(m, n, k, descriptors=by_descriptors)}
            if m * n > SUMS * 32 * warps or k < (constants.get("PROMOTE") or 0):
                continue
            for way in ways(problem, m, n, warps):
                bounds = limits(capability, row.bounds.mma, way.get("PERSISTENT", 1))
                if stages * (m + n) * k > bounds.shared:
                    continue
                yield Configuration(
                    kernel=kernel, mode=mode, heavy=problem.heavy, capability=row.capability,
                    latest=row.latest, constants={**constants, **way}, warps=warps, stages=stages,
                    bounds=bounds,
                )  # fmt: skip

    return candidates


def ways(problem: Problem, m: int, n: int, warps: int) -> Iterator[Mapping[str, int]]:
    """How tiles may go to programs: {} is one to each.

    Parts are as many as fill a device, and none is short. The last bucket of rows has no end, and sums of
    parts would take memory without one. What walks has large tiles, and more of them than processors.
    """
    yield {}
    tiles = tiles_of(problem, m, n)
    for parts in PARTS if problem.M < LARGEST else ():
        if tiles * parts < 2 * PROCESSORS and parts <= problem.K // SHORTEST:
            yield {"SPLIT": parts}
    for programs in (1, 2):
        fits = programs * 32 * warps * TYPICAL <= FILE
        if fits and m * n >= LARGE and tiles > programs * PROCESSORS:
            yield {"PERSISTENT": programs}


def limits(capability: int, mma: str, programs: int = 1) -> Bounds:
    """What no candidate may need more of, and must have: nothing is known of it that would be tighter.

    programs: that walk over tiles side by side on one processor. What they need beside their stages, for
    results on their way out, is known when they are compiled, and held to the same bound.
    """
    shared = shared_of(capability, programs)
    return Bounds(registers=REGISTERS, shared=shared, mma=mma, wide_loads=1, permutes=UNBOUNDED)


def tiles_of(problem: Problem, m: int, n: int) -> int:
    return -(-problem.M // m) * -(-problem.N // n)


def work(problem: Problem, configuration: Configuration) -> Work:
    """Codes once, the result once, and a residual where the epilogue is heavy; tiles from L2.

    Sums of parts are left in L2, and read there by who adds them.
    """
    sizes, width = configuration.constants, WIDTHS[problem.out]
    m, n, k, parts = sizes["BM"], sizes["BN"], sizes["BK"], sizes.get("SPLIT", 1)
    tiles = tiles_of(problem, m, n)
    depth = -(-problem.K // k) * k
    result = problem.M * problem.N * width * (2 if problem.heavy else 1)
    partial = SUM * parts * problem.M * problem.N if parts > 1 else 0
    return Work(
        kind=KINDS[configuration.kernel], operations=2.0 * tiles * m * n * depth,
        bytes=(problem.M + problem.N) * problem.K + result,
        l2_bytes=tiles * (m + n) * depth + (partial or result),
        programs=tiles * parts, threads=32 * configuration.warps, shared=configuration.stages * (m + n) * k,
        ended=partial or result, added=partial + result if partial else 0, launches=1 + (parts > 1),
        walking=sizes.get("PERSISTENT", 0),
    )  # fmt: skip


def use(kernel: str) -> Callable[[Problem], Use]:
    """With memory for sums of parts, which candidates without parts leave alone."""

    def of(problem: Problem) -> Use:
        out = f"*{problem.out}"
        types = signatures.types(
            signatures.CODES[kernel], out, bias=True, residual=out if problem.heavy else None
        )
        return Use(
            types=signatures.beside_parts(types),
            constants={"ACTIVATION": "gelu" if problem.heavy else "none"},
        )

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
