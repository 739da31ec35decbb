"""Observers that keep a histogram and read their range off it."""

from dataclasses import dataclass, field

from torch import Tensor

from qcompiler.numerics.formats import Format
from qcompiler.numerics.observers.histogram import Histogram
from qcompiler.numerics.observers.ranges import Range, kl_range, percentile_range
from qcompiler.numerics.observers.search import mse_range
from qcompiler.numerics.quantize import Scheme


@dataclass(kw_only=True)
class Binned:
    """The state that the observers below share."""

    name: str = "tensor"
    histogram: Histogram = field(init=False)

    def __post_init__(self) -> None:
        self.histogram = Histogram(name=self.name)

    def observe(self, x: Tensor) -> None:
        """Take in one batch."""
        self.histogram.observe(x)

    def merge(self, other: "Binned") -> None:
        """Take in what another has seen."""
        self.histogram.merge(other.histogram)


@dataclass(kw_only=True)
class Percentile(Binned):
    """See `percentile_range`."""

    p: float = 99.99

    def range(self) -> Range:
        """The range that leaves out the rarest elements."""
        return percentile_range(self.histogram, self.p)


@dataclass(kw_only=True)
class MSE(Binned):
    """See `mse_range`."""

    format: Format
    scheme: Scheme = "asymmetric"

    def range(self) -> Range:
        """The range of least squared error."""
        return mse_range(self.histogram, self.format, self.scheme)


@dataclass(kw_only=True)
class KL(Binned):
    """See `kl_range`."""

    format: Format

    def range(self) -> Range:
        """The range of least divergence."""
        return kl_range(self.histogram, self.format)
