"""Who can answer a problem: the kernel of an op, the configurations it has, and what else computes the same.

A family is a row; a kernel whose configuration shall be measured gets one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from qcompiler.backends.triton.configurations import CONFIGURATIONS, SHARED, Bounds, Configuration
from qcompiler.backends.triton.configurations.products import tile
from qcompiler.backends.triton.signatures import Use
from qcompiler.backends.triton.signatures import products as product_signatures
from qcompiler.backends.triton.tuning.predict import Work
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.errors import InputError

FLOAT = "float"  # the product in the result's type without any quantization, which all ratios are taken to
WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, kw_only=True)
class Family:
    """kernel: its name. peers: what computes the same by a vendor's kernels, "float" among them."""

    kernel: str
    space: Callable[[Problem, int], Iterator[Configuration]]
    work: Callable[[Problem, Configuration], Work]
    use: Callable[[Problem], Use]
    peers: tuple[str, ...]


def space(problem: Problem, capability: int) -> list[Configuration]:
    """All configurations of a problem on a device of a compute capability, those of the tables first."""
    family = family_of(problem)
    tabled = [
        row for row in CONFIGURATIONS
        if (row.kernel, row.mode, row.heavy) == (family.kernel, mode_of(problem), problem.heavy)
        and row.capability <= capability <= row.latest
    ]  # fmt: skip
    default = sorted(tabled, key=lambda row: -row.capability)[:1]
    found: dict[str, Configuration] = {}
    for one in (*default, *family.space(problem, capability)):
        found.setdefault(written(one), one)
    return [*found.values()]


def mode_of(problem: Problem) -> str:
    """What follows the scheme's first word: "e4m3 promote128"  -->  promote128"""
    return problem.scheme.partition(" ")[2]


def family_of(problem: Problem) -> Family:
    if problem.op not in FAMILIES:
        raise InputError(f"nothing is known of '{problem.op}'", fix=f"ask for one of {', '.join(FAMILIES)}")
    return FAMILIES[problem.op]


def written(configuration: Configuration) -> str:
    """As the text of a row: "BM 128, BN 256, BK 128, GROUP 8, DESCRIPTORS True, warps 8, stages 3"."""
    told = {**configuration.constants, "warps": configuration.warps, "stages": configuration.stages}
    return ", ".join(f"{name} {value}" for name, value in told.items())


# ---------------------------------------------------------------- products of codes

SIDES = (64, 128, 256)
DEPTHS = (64, 128)
SUMS = 128  # of one thread, at most: it has 255 registers
MMA = {"int8_matmul": {80: "IMMA", 90: "IGMMA"}, "fp8_matmul": {90: "QGMMA"}}
PROMOTES: Mapping[str, Mapping[str, Any]] = {"fast": {"PROMOTE": None}, "promote128": {"PROMOTE": 128}}
KINDS = {"int8_matmul": "int8", "fp8_matmul": "fp8"}


def product_space(kernel: str) -> Callable[[Problem, int], Iterator[Configuration]]:
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
    return Bounds(registers=255, shared=SHARED[capability], mma=mma, wide_loads=1, permutes=10**6)


def product_work(problem: Problem, configuration: Configuration) -> Work:
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


def product_use(kernel: str) -> Callable[[Problem], Use]:
    def use(problem: Problem) -> Use:
        types = product_signatures.types(
            product_signatures.CODES[kernel], f"*{problem.out}", bias=True, residual=problem.heavy
        )
        return Use(types=types, constants={"ACTIVATION": "gelu" if problem.heavy else "none"})

    return use


def product_family(kernel: str, peer: str) -> Family:
    return Family(
        kernel=kernel, space=product_space(kernel), work=product_work, use=product_use(kernel),
        peers=(FLOAT, peer),
    )  # fmt: skip


FAMILIES: Mapping[str, Family] = {
    "int8_linear": product_family("int8_matmul", "int_mm"),
    "fp8_linear": product_family("fp8_matmul", "scaled_mm"),
}
"""By op."""
