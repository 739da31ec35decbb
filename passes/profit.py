"""Rules of profit: one kernel computes two ops only if that takes no longer than two kernels do.

    first, second   -->   both in one        where fused <= apart

    fused = first + second, of results in registers        apart = first + second, in a pass of its own
    first = max(products / peak, bytes / bandwidth)        the roofline (Williams et al. 2009)

What the second op takes in either way is data of the target (`Costs`). Where the results are the same numbers
either way, a backend gives what it has measured, and that decides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch.fx import Node

from qcompiler.ir import label, spec
from qcompiler.target import Target
from qcompiler.tune.roofline import count, work_of

Source = Literal["database", "predicted"]


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """Two ops that one kernel can compute, with the microseconds of both ways and where these come from."""

    kind: str
    first: str
    second: str
    fused_us: float
    apart_us: float
    source: Source = "predicted"

    @property
    def taken(self) -> bool:
        return self.fused_us <= self.apart_us


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Microseconds of one kernel: a median, and the distance of its quartiles over it."""

    us: float
    spread: float


def weigh(
    kind: str, first: Node, second: Node, target: Target, *, shape: Sequence[int] | None = None,
    measured: tuple[Measured, Measured] | None = None,
) -> Fusion | None:  # fmt: skip
    """What a fusion takes and saves; None where the target's costs do not know it, and it is taken.

    shape: of the results; as traced, with an open size counted as one, where it is not given. measured: both
    in one kernel, and the first alone; they decide where they differ by more than they scatter.
    """
    costs = target.costs
    if costs is None or kind not in costs.behind:
        return None
    results = math.prod(shape) if shape is not None else results_of(first)
    ways = costs.behind[kind]
    products = macs(first)
    moved = 1 if products else 8  # bytes per result: codes written, or floats read and written
    alone = max(results * products / costs.products, results * moved / costs.bandwidth)
    more = ways.apart.us(results, costs.bandwidth)
    predicted = Fusion(
        kind=kind, first=label(first), second=label(second), apart_us=alone + more,
        fused_us=alone + ways.fused.us(results, costs.bandwidth),
    )  # fmt: skip
    if measured is None:
        return predicted
    both, one = measured
    found = replace(predicted, fused_us=both.us, apart_us=one.us + more, source="database")
    scatter = both.us * both.spread + one.us * one.spread
    return found if abs(found.fused_us - found.apart_us) > scatter else predicted


def pays(fusion: Fusion | None) -> bool:
    return fusion is None or fusion.taken


def results_of(node: Node) -> int:
    found = spec(node)
    assert found is not None
    return count(found.shape, 1)


def macs(node: Node) -> float:
    """Multiply-accumulates behind each result."""
    work = work_of(node, 1)
    return work.macs / results_of(node) if work is not None else 0.0
