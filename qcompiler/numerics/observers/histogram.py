"""A streaming histogram whose state depends on what was seen, never on the order or the batches."""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qcompiler.errors import CalibrationError

BINS = 2048  # 4 to 8 bins for each step of an 8-bit format
LOWEST_EXPONENT = -126  # of the bin width: its reciprocal stays a normal float32
CHUNK = 2**16  # elements binned at a time, to stay in the cache

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(kw_only=True)
class Histogram:
    """Counts of at most 2048 bins of width w = 2^exponent, the exact minimum and maximum, how many zeros.

    bin i >= 0   holds      i w <= x < (i + 1) w
    bin i < 0    holds   (i + 1) w >= x > i w, x < 0        the mirror image of bin -1 - i

    w is the narrowest power of two for which the data and zero fit. When data falls outside, w doubles and
    bin i goes to floor(i / 2): exact integer sums, and the same bins as if w had been wide from the start.
    Hence any split, order or merge of the same data gives an equal state.
    """

    name: str = "tensor"
    low: float = np.inf
    high: float = -np.inf
    zeros: int = 0
    exponent: int = LOWEST_EXPONENT
    bins: IntArray = field(default_factory=lambda: np.zeros(2 * BINS, dtype=np.int64))
    """Counts of bins -BINS .. BINS - 1; those in use span at most BINS."""

    def observe(self, x: Tensor) -> None:
        """Take in one batch; refuses an empty one, NaN and infinity."""
        values = finite_values(x, self.name)
        low, high = float(values.min()), float(values.max())
        self._widen(low, high)
        inverse = np.float32(2.0**-self.exponent)
        for start in range(0, values.size, CHUNK):
            chunk = values[start : start + CHUNK]
            index = (chunk * inverse).astype(np.int64)
            index += BINS
            if low < 0:
                index -= chunk < 0
            self.bins += np.bincount(index, minlength=2 * BINS)
            self.zeros += int(np.count_nonzero(chunk == 0))

    def merge(self, other: "Histogram") -> None:
        """Take in what another histogram has seen; the finer of the two is coarsened first."""
        if other.count == 0:
            return
        self._widen(other.low, other.high)
        self.bins = self.bins + _coarsen(other.bins, self.exponent - other.exponent)
        self.zeros += other.zeros

    @property
    def count(self) -> int:
        """How many elements were seen."""
        return int(self.bins.sum())

    @property
    def width(self) -> float:
        """The width of a bin."""
        return float(2.0**self.exponent)

    @property
    def counts(self) -> IntArray:
        """The counts from the lowest bin in use to the highest."""
        return self.bins[self._used]

    @property
    def centers(self) -> FloatArray:
        """The middles of those bins."""
        return (np.arange(-BINS, BINS, dtype=np.float64)[self._used] + 0.5) * self.width

    @property
    def _used(self) -> slice:
        filled = np.flatnonzero(self.bins)
        return slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0)

    def _widen(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        exponent = _exponent(min(self.low, 0.0), max(self.high, 0.0))
        self.bins = _coarsen(self.bins, exponent - self.exponent)
        self.exponent = exponent


def finite_values(x: Tensor, name: str) -> npt.NDArray[np.float32]:
    """The elements as a flat float32 array; refuses what no range can be taken of."""
    if x.numel() == 0:
        raise CalibrationError(f"{name} is empty", fix="leave out empty batches")
    values: npt.NDArray[np.float32] = x.detach().to("cpu", torch.float32).reshape(-1).numpy()
    extremes = values.min(), values.max()  # both propagate NaN
    for word, test in (("NaN", np.isnan), ("inf", np.isinf)):
        if test(extremes).any():
            raise CalibrationError(
                f"{name} contains {word}", fix="check the calibration data and the float model on this batch"
            )
    return values


def _exponent(low: float, high: float) -> int:
    """The smallest exponent at which bins of [low, high], low <= 0 <= high, number at most BINS."""
    if low == high:
        return LOWEST_EXPONENT
    result = max(math.frexp((high - low) / BINS)[1] - 1, LOWEST_EXPONENT)
    while int(high / 2.0**result) + 1 + (int(-low / 2.0**result) + 1 if low < 0 else 0) > BINS:
        result += 1
    return result


def _coarsen(bins: IntArray, doublings: int) -> IntArray:
    """Bin i  -->  bin floor(i / 2^doublings)."""
    if doublings <= 0:
        return bins
    index = np.arange(-BINS, BINS) >> min(doublings, 62)
    result: IntArray = np.zeros_like(bins)
    np.add.at(result, index + BINS, bins)
    return result
