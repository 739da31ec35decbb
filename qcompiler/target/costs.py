"""What it takes to compute two ops in one kernel, and in two: data of a target, in microseconds of one core.

us = start + max(results / rate, bytes results / bandwidth)        each way of doing the second op
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of computing the second op: `rate` results per microsecond, and `bytes` moved for each.

    start: of a call of its own.
    """

    rate: float
    bytes: float = 0.0
    start: float = 0.0

    def us(self, results: float, bandwidth: float) -> float:
        return self.start + max(results / self.rate, results * self.bytes / bandwidth)


@dataclass(frozen=True, kw_only=True)
class Behind:
    """The second op where the first one's results are still in registers, and in a pass of its own."""

    fused: Way
    apart: Way


@dataclass(frozen=True, kw_only=True)
class Costs:
    """products: multiply-accumulates of bytes per microsecond. bandwidth: bytes, of activations, likewise.

    behind: kind of fusion -> what it saves and adds. A kind that is not there is fused wherever it can be.
    """

    products: float
    bandwidth: float
    behind: Mapping[str, Behind]
