"""Ranges read off a histogram: minimum and maximum, percentiles, and the least divergence (KL)."""

from fractions import Fraction
from typing import TypeAlias

import numpy as np

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.numerics.formats import Format
from qcompiler.numerics.integer import IntFormat
from qcompiler.numerics.observers.histogram import BINS, FloatArray, Histogram, IntArray

Range: TypeAlias = tuple[float, float]

KL_MOST_LEVELS = BINS // 4  # with fewer than four bins a level, the divergence says nothing


def minmax_range(h: Histogram) -> Range:
    """The exact minimum and maximum."""
    if h.count == 0:
        raise CalibrationError(f"{h.name} was never observed", fix="give calibration data that reaches it")
    return h.low, h.high


def percentile_range(h: Histogram, p: float) -> Range:
    """Drop at most 1 - p/100 of the elements from each end, or from the top only where none is negative.

    The ends are bin edges, outward, and never beyond the minimum and maximum.
    """
    if not 50 < p <= 100:
        raise RecipeError(f"no percentile {p}", fix="use a number above 50, up to 100")
    low, high = minmax_range(h)
    allowed = h.count * (100 - Fraction(str(p))) // 100
    edges = h.centers - h.width / 2
    top = int(np.searchsorted(np.cumsum(h.counts[::-1]), allowed, side="right"))
    high = min(high, float(edges[-1] + h.width - top * h.width))
    if low < 0:
        bottom = int(np.searchsorted(np.cumsum(h.counts), allowed, side="right"))
        low = max(low, float(edges[0] + bottom * h.width))
    return low, high


def kl_applies(format: Format) -> bool:
    """Whether the format has equidistant levels, few enough for the histogram to tell them apart."""
    return isinstance(format, IntFormat) and _levels(format) <= KL_MOST_LEVELS


def kl_range(h: Histogram, format: Format) -> Range:
    """The clipping point t that loses least information; (-t, t), or (0, t) where nothing is negative.

    For each cut i of the histogram of |x|, with L levels (2^(b-1) signed, 2^b unsigned):
      P = hist[:i], with all that lies above added to its last bin
      Q = hist[:i], summed over L equal stretches, each spread back over its non-empty bins
      t = i w for the i of least KL(P, Q)        after Migacz, "8-bit inference with TensorRT", GTC 2017

    A cut whose last bin would be empty but for what lies above has an infinite divergence.
    """
    if not isinstance(format, IntFormat) or not kl_applies(format):
        raise RecipeError(f"kl does not apply to {format}", fix="use mse")
    low, high = minmax_range(h)
    hist = _magnitudes(h)
    levels, length = _levels(format), hist.size
    cuts = np.arange(min(levels, length), length + 1)
    best = int(cuts[np.argmin(_divergences(hist, cuts, levels))])
    threshold = min(best * h.width, max(-low, high))
    return (0.0 if low >= 0 else -threshold), threshold


def _levels(format: IntFormat) -> int:
    return 1 << (format.bits - format.signed)


def _magnitudes(h: Histogram) -> IntArray:
    """The histogram of |x|, up to its last non-empty bin."""
    folded = h.bins[BINS:] + h.bins[BINS - 1 :: -1]
    return folded[: int(np.flatnonzero(folded)[-1]) + 1]


def _divergences(hist: IntArray, cuts: IntArray, levels: int) -> FloatArray:
    """KL(P, Q) for each cut, from prefix sums: O(levels) for each.

    sum_j p_j log(p_j / q_j), with q_j = S / n inside a stretch that holds S in n non-empty bins
      = sum_j h_j log h_j - sum_stretches S log(S / n)   + the last bin's share of what was clipped
    and both normalised, p by N and q by N - clipped.
    """
    logs = np.log(np.maximum(hist, 1))
    mass, filled, entropy = (np.concatenate(([0.0], np.cumsum(row))) for row in (hist, hist > 0, hist * logs))
    edges = cuts[:, None] * np.arange(levels + 1) // levels
    stretch, occupied = np.diff(mass[edges], axis=1), np.diff(filled[edges], axis=1)
    level = np.log(np.maximum(stretch, 1) / np.maximum(occupied, 1))
    total, kept = mass[-1], mass[cuts]
    clipped, last = total - kept, hist[cuts - 1].astype(np.float64)
    lifted = last + clipped
    with np.errstate(divide="ignore", invalid="ignore"):
        scores: FloatArray = (
            entropy[cuts]
            - (stretch * level).sum(1)
            + lifted * np.log(np.maximum(lifted, 1))
            - last * np.log(np.maximum(last, 1))
            - clipped * level[:, -1]
        ) / total + np.log(kept / total)
    return np.where((last == 0) & (clipped > 0), np.inf, scores)
