"""What figures of the GPU benchmark mean: targets met or missed, and the default of 8 bits on a device."""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.gpu_contest import OK, Figure
from benchmarks.gpu_rows import APART
from benchmarks.gpu_trained import WEIGHT_TOO
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.backends.triton.tuning.products import QUANTIZED

Of = Callable[[Figure], float | None]


def over(peer: str) -> Of:
    return lambda figure: figure.over.get(peer)


def of_copy(figure: Figure) -> float | None:
    return figure.of_copy


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the fastest of ours has to reach in each cell that `where` selects, by the values of its fields.

    ends: how a contender's name ends, where the way it is called matters.
    """

    title: str
    least: float
    of: Of
    where: Mapping[str, Collection[object]]
    ends: str = ""
    peers: bool = False  # whether a vendor's kernel will do


def weights(
    title: str, least: float, rows: Collection[int], shapes: Mapping[str, Collection[object]]
) -> Target:
    where = {"op": ("weight_only_linear",), "scheme": ("w4h_g128",), "M": rows, **shapes}
    return Target(title=f"w4a16, {title}", least=least, of=over(FLOAT), where=where)


LARGE = range(2048, 10**6)
CODES = ("int8_linear", "fp8_linear")
ANY = range(1, 10**9)

TARGETS: tuple[Target, ...] = (
    weights("M 1, 4096 x 4096", 2.4, (1,), {"N": (4096,), "K": (4096,)}),
    weights("M 1, 11008 x 4096", 3.0, (1,), {"N": (11008,)}),
    weights("M 1, 8192 x 8192", 3.2, (1,), {"N": (8192,)}),
    weights("M 16, 4096 x 4096", 2.2, (16,), {"N": (4096,), "K": (4096,)}),
    weights("M 16, 11008 x 4096 and larger", 2.8, (16,), {"N": range(8192, 10**6)}),
    weights("M 128", 1.5, (128,), {}),
    weights("any M", 0.97, ANY, {}),
    Target(
        title="8 bits, codes made, 4096 x 4096, M from 2048", least=1.35, of=over(FLOAT), ends=QUANTIZED,
        where={"op": CODES, "M": LARGE, "N": (4096,), "K": (4096,)}, peers=True,
    ),
    Target(
        title="8 bits, codes made, N from 8192, M from 2048", least=1.5, of=over(FLOAT), ends=QUANTIZED,
        where={"op": CODES, "M": LARGE, "N": range(8192, 10**6)}, peers=True,
    ),
    Target(title="norm + codes, of a copy", least=0.90, of=of_copy, where={"op": ("norm_quantize",)}),
    Target(title="pack, of a copy", least=0.85, of=of_copy, where={"op": ("store",)}),
    Target(title="unpack, of a copy", least=0.85, of=of_copy, where={"op": ("recall",)}),
    Target(
        title="Hadamard + codes, over two kernels", least=1.8, of=over(APART),
        where={"op": ("hadamard_quantize",)},
    ),
    Target(
        title="attention over int8 keys, 4096 tokens", least=1.7, of=over(FLOAT),
        where={"op": ("decode_attention",), "scheme": ("int8",), "N": (4096,)},
    ),
    Target(
        title="linear forward and backward, 8192 tokens", least=1.35, of=over(FLOAT), ends=WEIGHT_TOO,
        where={"op": ("trained_linear",), "M": (8192,), "N": ANY, "K": (4096,)},
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """measured: of the worst cell that has a time, None without any; missing: cells that have none."""

    title: str
    least: float
    measured: float | None
    where: str
    missing: int

    @property
    def word(self) -> str:
        if self.measured is None:
            return "not measured"
        if self.measured < self.least:
            return "missed"
        return "met" if not self.missing else f"met, {self.missing} cells without time"


def verdict(target: Target, figures: Iterable[Figure]) -> Verdict:
    """Of 8 bits there are several kinds, of which the best counts: a cell is its sizes."""
    best: dict[tuple[int, int, int], float | None] = {}
    for one in figures:
        if not all(getattr(one, name) in values for name, values in target.where.items()):
            continue
        if not (one.ours or target.peers) or not one.contender.endswith(target.ends if one.contender else ""):
            continue
        figure = target.of(one) if one.status == OK else None
        held = best.setdefault((one.M, one.N, one.K), None)
        if figure is not None and (held is None or figure > held):
            best[one.M, one.N, one.K] = figure
    known = {sizes: figure for sizes, figure in best.items() if figure is not None}
    worst = min(known, key=known.__getitem__, default=None)
    return Verdict(
        title=target.title, least=target.least, measured=None if worst is None else known[worst],
        where="" if worst is None else "M {}, N {}, K {}".format(*worst), missing=len(best) - len(known),
    )  # fmt: skip


def verdicts(figures: Sequence[Figure]) -> list[Verdict]:
    return [verdict(target, [one for one in figures if one.stage != "gates"]) for target in TARGETS]


# ---------------------------------------------------------------- the default

DECIDED_BY = ((8192, 8192, 8192), (8192, 4096, 4096), (8192, 14336, 4096), (8192, 4096, 14336))
WORTH, EQUAL, SLOWER = 1.05, 0.95, 1.08


@dataclass(frozen=True, kw_only=True)
class Default:
    """ratios: by path, the geometric mean of how many times faster than bfloat16, codes made on the way.

    text: what follows. A path that was not measured in all cells has no ratio.
    """

    ratios: Mapping[str, float]
    text: str
    rule: int | None = None
    missing: tuple[str, ...] = field(default_factory=tuple)


def path(figure: Figure) -> str:
    """int8, int_mm; fp8 fast, fp8 promote128, scaled_mm"""
    if not figure.ours:
        return figure.contender.removesuffix(QUANTIZED)
    return figure.scheme.replace("e4m3", "fp8")


def default(figures: Iterable[Figure], cells: Collection[tuple[int, int, int]] = DECIDED_BY) -> Default:
    """The first rule that fires; with R = geomean(bf16 / path), I the best of int8, F the best of FP8:

    1. I and F < 1.05: bfloat16.     2. I >= 0.95 F: int8, which is more accurate.     3. FP8.
    """
    found: dict[str, dict[tuple[int, int, int], float]] = {}
    for one in figures:
        sizes = (one.M, one.N, one.K)
        if one.op in CODES and one.quantized and one.status == OK and FLOAT in one.over and sizes in cells:
            held = found.setdefault(path(one), {})
            held[sizes] = max(held.get(sizes, 0.0), one.over[FLOAT])
    ratios = {
        name: statistics.geometric_mean(held.values())
        for name, held in found.items()
        if len(held) == len(cells)
    }
    missing = tuple(name for name in ("int8", "fp8 fast", "fp8 promote128") if name not in ratios)
    integer = max((ratios[name] for name in ("int8", "int_mm") if name in ratios), default=math.nan)
    fp8 = max((ratios[name] for name in ("fp8 fast", "scaled_mm", "fp8 promote128") if name in ratios),
              default=math.nan)  # fmt: skip
    if math.isnan(integer) or math.isnan(fp8):
        return Default(ratios=ratios, text="not decided: not all cells were measured", missing=missing)
    if max(integer, fp8) < WORTH:
        return Default(ratios=ratios, text="no 8 bits by default: bfloat16 stays", rule=1, missing=missing)
    if integer >= EQUAL * fp8:
        return Default(ratios=ratios, text="int8: as fast, and more accurate", rule=2, missing=missing)
    return Default(ratios=ratios, text=f"FP8 by rows{backward(ratios)}", rule=3, missing=missing)


def backward(ratios: Mapping[str, float]) -> str:
    if not {"fp8 fast", "fp8 promote128"} <= ratios.keys():
        return ""
    cost = ratios["fp8 fast"] / ratios["fp8 promote128"]
    mode = "promote128" if cost < SLOWER else "fast"
    return f", backward {mode}: adding in float32 costs {cost - 1:.0%}"
