"""Whether few bits are accepted: measured beside float, with what making codes costs, or on paper.

    accept  <=>  sum_b w_b T_q(b) <= (1 - e) sum_b w_b T_float(b)        T_q = product + quantize / consumers

b are buckets of rows, w how often they come. e is 0.05 of what was measured, and 0.25 of what was predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MEASURED = 0.05
PREDICTED = 0.25


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Seconds of one bucket of rows. quantize: of making the codes, which `consumers` ops read."""

    M: int
    weight: float
    few_bits: float
    in_float: float
    quantize: float = 0.0
    consumers: int = 1

    @property
    def ours(self) -> float:
        return self.few_bits + self.quantize / self.consumers


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """ratio: how many times faster than float. needed: how many times it has to be."""

    name: str
    rows: tuple[int, ...]
    ratio: float
    needed: float
    source: str

    @property
    def is_accepted(self) -> bool:
        return self.ratio >= self.needed

    def __str__(self) -> str:
        word = "accepted" if self.is_accepted else "refused"
        rows = ", ".join(map(str, self.rows))
        return f"{word} {self.name} M={rows}: {self.ratio:.2f}x {self.source}, {self.needed:.2f}x needed"


def weighed(name: str, buckets: Sequence[Bucket], *, is_measured: bool) -> Verdict:
    """An op's verdict over all buckets; there is at least one."""
    margin = MEASURED if is_measured else PREDICTED
    ours = sum(bucket.weight * bucket.ours for bucket in buckets)
    theirs = sum(bucket.weight * bucket.in_float for bucket in buckets)
    return Verdict(
        name=name, rows=tuple(bucket.M for bucket in buckets), ratio=theirs / ours, needed=1 / (1 - margin),
        source="measured" if is_measured else "predicted",
    )  # fmt: skip
