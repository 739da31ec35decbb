"""The result of the benchmark: one cell per contender and workload, and who counts."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.worker import Prepared, Ready
from benchmarks.workloads import Workload
from qcompiler.tune.measure import Timing


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What was found of one contender on one workload; where it failed or is not installed, only the reason.

    speed: median of time(baseline) / time(contender) over the rounds, which `ratios` holds
    counts: whether the SQNR reaches the floor of the workload for weights of so many bits
    best: fastest that counts, among those with as many bits
    """

    workload: str
    contender: str
    status: str = "ok"  # or "failed", "not installed"
    reason: str = ""
    speed: float | None = None
    ratios: tuple[float, ...] = ()
    milliseconds: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    counts: bool = False
    best: bool = False
    megabytes: float | None = None
    prepare_s: float | None = None
    ready_s: float | None = None
    memory_mb: float | None = None


def cell_of(
    workload: tuple[str, Workload], contender: tuple[str, Contender], baseline: str, timing: Timing,
    prepared: Prepared, ready: Ready,
) -> Cell:  # fmt: skip
    name, bits = contender[0], contender[1].bits
    return Cell(
        workload=workload[0],
        contender=name,
        speed=timing.ratio(baseline, name),
        ratios=tuple(timing.ratios(baseline, name)),
        milliseconds=1e3 * timing.median(name),
        sqnr_db=ready.sqnr_db,
        agreement=ready.agreement,
        counts=ready.sqnr_db >= workload[1].floor_db.get(bits, float("-inf")),
        megabytes=None if prepared.size is None else prepared.size / 1e6,
        prepare_s=prepared.seconds,
        ready_s=ready.seconds,
        memory_mb=ready.memory,
    )


def with_best(cells: Iterable[Cell], bits: Mapping[str, int]) -> list[Cell]:
    """Mark the fastest that counts, of every workload and number of bits."""
    cells = list(cells)
    fastest: dict[tuple[str, int], float] = {}
    for cell in cells:
        if cell.speed is not None and cell.counts:
            rivals = cell.workload, bits[cell.contender]
            fastest[rivals] = max(cell.speed, fastest.get(rivals, 0.0))
    return [
        replace(cell, best=cell.counts and cell.speed == fastest[cell.workload, bits[cell.contender]])
        for cell in cells
    ]


def to_mapping(cell: Cell) -> dict[str, Any]:
    """For JSON, which has no infinity: float against itself has no noise."""
    found = asdict(cell)
    if cell.sqnr_db == float("inf"):
        found["sqnr_db"] = None
    return found
