"""Sums and maxima over axes, and what is made of them: softmax, variances, norms.

    sum_k x[k]  -->  sum_l (sum_k x[k L + l]) + the rest        L lanes of a register, each with its own sum

so that the inner loop is one over lanes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from qcompiler.backends.tvm.floatpath import elementwise
from qcompiler.backends.tvm.floatpath.elementwise import FUNCTION
from qcompiler.backends.tvm.floatpath.functions import Functions, largest, named, smallest
from qcompiler.backends.tvm.floatpath.values import Given, Index, Making, Value, axis_of, joined, number

Reduce = Callable[..., Any]
BOTH = {  # of two, where it is not the sum
    largest: elementwise.larger, smallest: elementwise.smaller, te.max: tirx.max, te.min: tirx.min,
}  # fmt: skip


def axes_of(given: Given, rank: int) -> tuple[int, ...]:
    """All axes, if none is named."""
    dims = given.arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    return tuple(sorted({axis_of(dim, rank) for dim in dims})) if dims else tuple(range(rank))


def reduced(making: Making, x: Value, axes: Sequence[int], reduce: Reduce) -> Value:
    """x without `axes`; in memory."""
    x, axes = flat(x, axes)
    rank, lanes = len(x.shape), making.lanes
    kept = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    sizes = [x.shape[axis] for axis in axes]
    if lanes == 1 or rank - 1 not in axes or sizes[-1] < 2 * lanes:
        return over(making, kept, sizes, lambda index, inner: x.at(joined(index, inner, axes)), reduce)
    groups, rest = divmod(sizes[-1], lanes)

    def of_lane(index: Index, inner: Index) -> Any:
        *outer, lane = index
        return x.at(joined(tuple(outer), (*inner[:-1], inner[-1] * lanes + lane), axes))

    def of_rest(index: Index, inner: Index) -> Any:
        return x.at(joined(index, (*inner[:-1], inner[-1] + groups * lanes), axes))

    by_lane = over(making, (*kept, lanes), [*sizes[:-1], groups], of_lane, reduce)
    total = over(making, kept, [lanes], lambda index, inner: by_lane.at((*index, *inner)), reduce)
    if not rest:
        return total
    behind = over(making, kept, [*sizes[:-1], rest], of_rest, reduce)
    both = BOTH.get(reduce, lambda a, b: a + b)
    return making.compute(kept, lambda *index: both(total.at(index), behind.at(index)))


def flat(x: Value, axes: Sequence[int]) -> tuple[Value, Sequence[int]]:
    """The last axes as one, if they are what is summed: its places need no remainder where x is in memory."""
    first, rank = len(x.shape) - len(axes), len(x.shape)
    if len(axes) < 2 or tuple(axes) != tuple(range(first, rank)):
        return x, axes
    sizes = x.shape[first:]

    def at(index: Index) -> Any:
        place, found = index[first], []
        for size in reversed(sizes[1:]):
            found.append(tirx.floormod(place, size))
            place = tirx.floordiv(place, size)
        return x.at((*index[:first], place, *reversed(found)))

    return Value(shape=(*x.shape[:first], math.prod(sizes)), at=at, cost=x.cost), (first,)


def over(
    making: Making, kept: Sequence[int], sizes: Sequence[int], at: Callable[[Index, Index], Any],
    reduce: Reduce,
) -> Value:  # fmt: skip
    inner = [te.reduce_axis((0, size), name=f"k{i}") for i, size in enumerate(sizes)]
    return making.compute(kept, lambda *index: reduce(at(index, tuple(inner)), axis=inner))


def kept_as_one(value: Value, axes: Sequence[int], rank: int) -> Value:
    """The axes that are gone, as axes of one."""
    left = iter(value.shape)
    shape = tuple(1 if axis in axes else next(left) for axis in range(rank))
    return Value(
        shape=shape, cost=value.cost,
        at=lambda index: value.at(tuple(at for axis, at in enumerate(index) if axis not in axes)),
    )  # fmt: skip


def shaped(given: Given, value: Value, axes: Sequence[int], rank: int) -> Value:
    keep = given.arguments.get("keepdim", False)
    return kept_as_one(value, axes, rank) if keep else value


def scaled(value: Value, function: Callable[[Any], Any], cost: int = 1) -> Value:
    return Value(shape=value.shape, at=lambda index: function(value.at(index)), cost=value.cost + cost)


def total(reduce: Callable[[Functions], Reduce]) -> Callable[[Given], Value]:
    """What a target's functions reduce by."""

    def row(given: Given) -> Value:
        x, making = given["self"], given.making
        axes = axes_of(given, len(x.shape))
        return shaped(given, reduced(making, x, axes, reduce(making.functions)), axes, len(x.shape))

    return row


def mean(given: Given) -> Value:
    x = given["self"]
    axes = axes_of(given, len(x.shape))
    found = averaged(given.making, x, axes)
    return shaped(given, found, axes, len(x.shape))


def averaged(making: Making, x: Value, axes: Sequence[int]) -> Value:
    count = math.prod(x.shape[axis] for axis in axes)
    return scaled(reduced(making, x, axes, te.sum), lambda value: value * number(1.0 / count))


def spread(making: Making, x: Value, axes: Sequence[int], less: float = 0.0) -> tuple[Value, Value]:
    """Mean and mean square distance from it, over n - `less`."""
    count = math.prod(x.shape[axis] for axis in axes)
    center = averaged(making, x, axes)
    middle = kept_as_one(center, axes, len(x.shape))

    def squared(index: Index) -> Any:
        around = tuple(tirx.const(0, "int32") if axis in axes else at for axis, at in enumerate(index))
        return named(x.at(index) - middle.at(around), lambda v: v * v)

    apart = Value(shape=x.shape, at=squared, cost=x.cost + 2)
    summed = reduced(making, apart, axes, te.sum)
    return center, scaled(summed, lambda value: value * number(1.0 / (count - less)))


def variance(*, root: bool) -> Callable[[Given], Value | None]:
    def row(given: Given) -> Value | None:
        x = given["self"]
        axes = axes_of(given, len(x.shape))
        less = given.arguments.get("correction")
        less = (1.0 if given.arguments.get("unbiased", True) else 0.0) if less is None else less
        if math.prod(x.shape[axis] for axis in axes) <= less:
            return None
        _, found = spread(given.making, given.making.read_again(x, 2), axes, less)
        found = scaled(found, tirx.sqrt) if root else found
        return shaped(given, found, axes, len(x.shape))

    return row


def vector_norm(given: Given) -> Value | None:
    """sqrt(sum x^2)"""
    if given["ord"] != 2:
        return None
    x = given["self"]
    axes = axes_of(given, len(x.shape))
    squares = scaled(x, lambda value: named(value, lambda v: v * v))
    found = scaled(reduced(given.making, squares, axes, te.sum), tirx.sqrt)
    return shaped(given, found, axes, len(x.shape))


# ---------------------------------------------------------------- softmax


def shifted(given: Given) -> tuple[Value, int]:
    """x - max x, of which no exponent is too large, and the axis; NaN need not be looked for, as it stays."""
    making, rank = given.making, len(given.shape)
    x, axis = making.read_again(given["self"], 2), axis_of(given["dim"], rank)
    top = reduced(making, x, (axis,), te.max)

    def at(index: Index) -> Any:
        return x.at(index) - top.at((*index[:axis], *index[axis + 1 :]))

    return Value(shape=given.shape, at=at, cost=x.cost + 1), axis


def softmax(given: Given) -> Value:
    """e / sum e, e = exp(x - max x)"""
    x, axis = shifted(given)
    e = given.making.stored(scaled(x, given.making.functions.exp, FUNCTION))
    share = scaled(reduced(given.making, e, (axis,), te.sum), lambda value: number(1.0) / value)
    share = given.making.stored(share)
    return Value(
        shape=given.shape, cost=1,
        at=lambda index: e.at(index) * share.at((*index[:axis], *index[axis + 1 :])),
    )  # fmt: skip


def log_softmax(given: Given) -> Value:
    x, axis = shifted(given)
    e = scaled(x, given.making.functions.exp, FUNCTION)
    logs = given.making.stored(scaled(reduced(given.making, e, (axis,), te.sum), tirx.log))
    return Value(
        shape=given.shape, cost=x.cost + 1,
        at=lambda index: x.at(index) - logs.at((*index[:axis], *index[axis + 1 :])),
    )  # fmt: skip


# ---------------------------------------------------------------- norms


def normed(given: Given, x: Value, axes: Sequence[int], *, centered: bool, epsilon: float) -> Value:
    """(x - mean) / sqrt(variance + eps), or x / sqrt(mean of squares + eps)"""
    making = given.making
    x = making.read_again(x, 3 if centered else 2)
    if centered:
        center, square = spread(making, x, axes)
    else:
        squares = scaled(x, lambda value: named(value, lambda v: v * v))
        square = averaged(making, squares, axes)
    factor = making.stored(scaled(square, lambda v: number(1.0) / tirx.sqrt(v + number(epsilon))))

    def at(index: Index) -> Any:
        left = tuple(i for axis, i in enumerate(index) if axis not in axes)
        value = x.at(index) - center.at(left) if centered else x.at(index)
        return value * factor.at(left)

    return Value(shape=x.shape, at=at, cost=x.cost + 2)


def affine(value: Value, gain: Value | None, bias: Value | None, place: Callable[[Index], Index]) -> Value:
    def at(index: Index) -> Any:
        result = value.at(index)
        result = result if gain is None else result * gain.at(place(index))
        return result if bias is None else result + bias.at(place(index))

    return Value(shape=value.shape, at=at, cost=value.cost + 2)


def last_axes(*, centered: bool) -> Callable[[Given], Value]:
    """Layer norm and RMS norm."""

    def row(given: Given) -> Value:
        x, rank = given["input"], len(given.shape)
        first = rank - len(given["normalized_shape"])
        epsilon = given["eps"] if given["eps"] is not None else 2.0**-23  # as torch: that of float32
        found = normed(given, x, tuple(range(first, rank)), centered=centered, epsilon=epsilon)
        return affine(found, given["weight"], given.arguments.get("bias"), lambda index: index[first:])

    return row


def group_norm(given: Given) -> Value:
    """Over the channels of a group and all places, [N, C, ..]; C = groups x members."""
    x, groups = given["input"], given["num_groups"]
    x = given.making.read_again(x, 3)
    batch, channels, *places = x.shape
    members = channels // groups
    apart = Value(
        shape=(batch, groups, members, *places), cost=x.cost,
        at=lambda index: x.at((index[0], index[1] * members + index[2], *index[3:])),
    )  # fmt: skip
    found = normed(given, apart, tuple(range(2, len(places) + 3)), centered=True, epsilon=given["eps"])

    def at(index: Index) -> Any:
        group, member = tirx.floordiv(index[1], members), tirx.floormod(index[1], members)
        return found.at((index[0], group, member, *index[2:]))

    together = Value(shape=x.shape, at=at, cost=found.cost)
    return affine(together, given["weight"], given["bias"], lambda index: (index[1],))


def instance_norm(given: Given) -> Value | None:
    if not given["use_input_stats"]:
        return None
    found = normed(
        given, given["input"], tuple(range(2, len(given.shape))), centered=True, epsilon=given["eps"]
    )
    return affine(found, given["weight"], given["bias"], lambda index: (index[1],))
