"""Choosing a range by the error that it causes, measured on the histogram."""

from collections.abc import Callable, Collection

import numpy as np
import torch

from qcompiler.errors import RecipeError
from qcompiler.numerics.formats import Format
from qcompiler.numerics.granularity import PerChannel
from qcompiler.numerics.integer import IntFormat
from qcompiler.numerics.observers.histogram import FloatArray, Histogram
from qcompiler.numerics.observers.ranges import Range, kl_applies, kl_range, minmax_range, percentile_range
from qcompiler.numerics.quantize import Scheme, params_from_range

PERCENTILES = (99.9, 99.99, 99.999, 99.9999)
CANDIDATES = ("minmax", *(f"percentile_{p}" for p in PERCENTILES), "kl", "mse")
SHRINKS = np.arange(1, 101) / 100
REFINEMENT = np.arange(-9, 10) / 1000  # almost one coarse step to each side
GAIN = 1e-3  # of the error; a round that gains less is the last
Function = Callable[[FloatArray], FloatArray]


def expected_error(
    h: Histogram, lo: float, hi: float, format: Format, scheme: Scheme, *, read_by: Function | None = None
) -> float:
    """Mean squared error of fake-quantizing under that range, every element taken to be its bin's middle.

    sum_b h_b (c_b - F(c_b))^2 / sum_b h_b        zeros count as 0, which F represents exactly
    sum_b h_b (f(c_b) - f(F(c_b)))^2 / sum_b h_b  where a function f alone reads the value
    """
    minmax_range(h)
    return float(_errors(h, np.array([lo]), np.array([hi]), format, scheme, read_by)[0])


def mse_range(h: Histogram, format: Format, scheme: Scheme, *, read_by: Function | None = None) -> Range:
    """The range of least `expected_error`: the full range shrunk by 1 .. 100 %, then refined around the best.

    Asymmetric ranges then move one end at a time, in turn, until a round gains less than a thousandth;
    the first round tries every shrinkage of each end, the others only what is near.
    """
    low, high = _full_range(h, format, scheme)
    if low == high:
        return low, high
    coarse = SHRINKS[np.argmin(_errors(h, SHRINKS * low, SHRINKS * high, format, scheme, read_by))]
    fine = np.minimum(coarse + REFINEMENT, 1.0)
    best, error = _best(h, fine * low, fine * high, format, scheme, read_by)
    if scheme != "asymmetric" or not isinstance(format, IntFormat) or low == 0 or high == 0:
        return best

    before, grid = np.inf, SHRINKS
    while error < before * (1 - GAIN):
        before = error
        for end, full in sorted(enumerate((low, high)), key=lambda side: -abs(side[1])):
            moved = full * np.clip(np.concatenate((best[end] / full + REFINEMENT, grid)), 0.001, 1.0)
            fixed = np.full_like(moved, best[1 - end])
            ends = (moved, fixed) if end == 0 else (fixed, moved)
            found, found_error = _best(h, *ends, format, scheme, read_by)
            if found_error < error:
                best, error = found, found_error
        grid = SHRINKS[:0]
    return best


def candidates(
    h: Histogram, format: Format, scheme: Scheme, *, read_by: Function | None = None
) -> dict[str, Range]:
    """The ranges worth trying, by name; kl only where it is defined."""
    ranges = {"minmax": minmax_range(h)}
    ranges |= {f"percentile_{p}": percentile_range(h, p) for p in PERCENTILES}
    if scheme in ("symmetric", "one_sided") and kl_applies(format):
        ranges["kl"] = kl_range(h, format)
    return ranges | {"mse": mse_range(h, format, scheme, read_by=read_by)}


def best_range(
    h: Histogram,
    format: Format,
    scheme: Scheme,
    allowed: Collection[str] | None = None,
    *,
    read_by: Function | None = None,
) -> tuple[str, Range, dict[str, float]]:
    """The candidate of least `expected_error`, its range, and the errors of all that were tried.

    minmax is always among them and wins ties, so the result is never worse than minmax.
    """
    unknown = [name for name in allowed or () if name not in CANDIDATES]
    if unknown:
        raise RecipeError(f"unknown range {', '.join(unknown)}", fix=f"use some of {', '.join(CANDIDATES)}")
    ranges = candidates(h, format, scheme, read_by=read_by)
    ranges = {
        name: ends for name, ends in ranges.items() if allowed is None or name in allowed or name == "minmax"
    }
    los, his = np.array(list(ranges.values())).T
    errors = _errors(h, los, his, format, scheme, read_by)
    scores = dict(zip(ranges, map(float, errors), strict=True))
    name = min(scores, key=lambda name: scores[name])
    return name, ranges[name], scores


def _full_range(h: Histogram, format: Format, scheme: Scheme) -> Range:
    """The least range of the scheme's shape that holds all data."""
    low, high = minmax_range(h)
    if scheme == "asymmetric" and isinstance(format, IntFormat):
        return min(low, 0.0), max(high, 0.0)
    if scheme == "one_sided" and isinstance(format, IntFormat):
        return 0.0, max(high, 0.0)
    reach = max(-low, high)
    return (0.0 if low >= 0 else -reach), reach


def _best(
    h: Histogram, los: FloatArray, his: FloatArray, format: Format, scheme: Scheme, read_by: Function | None
) -> tuple[Range, float]:
    errors = _errors(h, los, his, format, scheme, read_by)
    index = int(np.argmin(errors))
    return (float(los[index]), float(his[index])), float(errors[index])


def _errors(
    h: Histogram, los: FloatArray, his: FloatArray, format: Format, scheme: Scheme, read_by: Function | None
) -> FloatArray:
    """`expected_error` of many ranges at once."""
    params = params_from_range(
        torch.from_numpy(los), torch.from_numpy(his), format, PerChannel(axis=0), scheme=scheme
    )
    counts, centers = h.counts.copy(), h.centers
    counts[(centers > 0) & (centers < h.width)] -= h.zeros
    filled = counts > 0
    counts, centers = counts[filled], centers[filled]
    scale = params.scale.double().numpy()[:, None]
    grid = centers / scale
    if isinstance(params.format, IntFormat):
        zero = params.zero_point.numpy()[:, None]
        rounded = np.clip(np.rint(grid), params.format.qmin - zero, params.format.qmax - zero)
    else:
        values = params.format.decode_table().numpy()
        values = np.unique(values[np.isfinite(values)])
        # a tie is equally far from both sides, so which one it goes to makes no difference here
        rounded = values[np.searchsorted((values[1:] + values[:-1]) / 2, grid)]
    if read_by is not None:
        grid, rounded, scale = read_by(grid * scale), read_by(rounded * scale), np.ones_like(scale)
    grid -= rounded
    np.multiply(grid, grid, out=grid)
    errors: FloatArray = grid @ counts * scale[:, 0] ** 2 / h.count
    return errors
