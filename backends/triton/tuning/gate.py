"""Whether a product's numbers are right: one gate for the tuner, the benchmarks and tests on a GPU.

    |found - exact| / |exact|  <=  sqrt((1.5 r)^2 + t^2)

in the norm of Frobenius. exact: in float64, of the operands that are stored. r: what rounding the exact
result to its type makes of it. t: what is `lost` before, in sums and behind them, or another error that is
independent of r.
"""

import math

from torch import Tensor

FLOOR = 1.5  # times r: roundings of two results of one type are hardly ever further apart
UNIT = 2.0**-13  # of the largest of what an instruction adds, behind which the rest is cut off
SIDE_BY_SIDE = 32  # products that one instruction on FP8 adds to a sum
BEHIND = 2.0**-21 + 5 * 2.0**-24  # the exponential of an activation, and five roundings of float32
DEPTHS = {"fast": None, "promote128": 128}
"""By how FP8 is summed: products after which a sum is added in float32; None where that is never."""


def lost(mode: str, K: int) -> float:
    """t of a sum over K products and its epilogue, by mode: "" of exact integers, "fast" or "promote128".

    FP8 instructions of 8.9 and 9.0 align 32 products p and the running sum s to the largest of them, m, and
    keep 13 bits behind its first: so arXiv 2412.19437, section 3.3.2, and arXiv 2411.10958 measured it. Of
    each of 33 numbers less than u = 2^-13 m is cut off, toward zero: with signs at random 0 in the mean, and
    u^2 / 3 in the mean square. Let a sum be of D products in these bits, and Q the sum of their squares:

        E s^2 <= Q,  p^2 <= Q              E m^2 <= 2 Q
        E e^2 = (D / 32) (33 / 3) E u^2    <= (22 D / 32) 2^-26 Q            D / 32 instructions
        E (exact sum)^2 = Q                t = sqrt(22 D / 32) 2^-13

    "fast" has D = K: 6.5e-3 of 4096. "promote128" has D = 128, and adds independent parts, which leaves the
    ratio as it is: 1.2e-3; what float32 adds to that is 2^-24 sqrt(K / 128), less than a thousandth of it.
    Sums in n parts have D = K / n, or 128, and are as independent: what the whole is allowed does for them.
    Products have 8 bits, and only small ones lose any: by this arithmetic random operands are 4 to 11 times
    nearer than that.
    """
    if not mode:
        return BEHIND
    depth = min(DEPTHS[mode] or K, K)
    return math.hypot(math.sqrt(22 * depth / SIDE_BY_SIDE) * UNIT, BEHIND)


def relative(found: Tensor, exact: Tensor, before: float = 0.0) -> tuple[float, float]:
    """The error and what is allowed; the error is infinite where NaN is elsewhere. before: t."""
    right, made = exact.double(), found.double().view_as(exact)
    if not bool((right.isnan() == made.isnan()).all()):
        return math.inf, before
    right, made = right.nan_to_num(), made.nan_to_num()
    scale = right.norm()
    rounding = float((right.to(found.dtype).double() - right).norm() / scale)
    return float((made - right).norm() / scale), math.hypot(FLOOR * rounding, before)


def too_far(found: Tensor, exact: Tensor, before: float = 0.0) -> str:
    """Why a result is wrong, or ""."""
    error, allowed = relative(found, exact, before)
    return "" if error <= allowed else f"its error is {error:.2e}, and {allowed:.2e} is allowed"
