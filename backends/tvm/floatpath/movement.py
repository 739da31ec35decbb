"""Ops that only choose places: y[i] = x[p(i)], and those that weigh a few of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.floatpath.functions import named
from qcompiler.backends.tvm.floatpath.values import Given, Index, Value, axis_of, number, repeated, whole


def moved(given: Given, x: Value, place: Callable[[Index], Index], cost: int = 0) -> Value:
    """y[i] = x[place(i)]; never in memory by itself, so that it costs something."""
    return Value(shape=given.shape, at=lambda index: x.at(place(index)), cost=max(1, x.cost + cost))


def expand(given: Given) -> Value:
    x = given["self"]
    return Value(shape=given.shape, at=lambda index: repeated(x, index), cost=max(1, x.cost))


def permute(given: Given) -> Value:
    order = [axis_of(dim, len(given.shape)) for dim in given["dims"]]
    return moved(given, given["self"], lambda index: tuple(index[order.index(i)] for i in range(len(order))))


def transpose(given: Given) -> Value:
    """Two axes exchanged; of a matrix, if none is named."""
    rank = len(given.shape)
    a, b = (axis_of(given.arguments.get(name, i), rank) for i, name in enumerate(("dim0", "dim1")))
    order = list(range(rank))
    if rank:
        order[a], order[b] = order[b], order[a]
    return moved(given, given["self"], lambda index: tuple(index[i] for i in order))


def unsqueeze(given: Given) -> Value:
    axis = axis_of(given["dim"], len(given.shape))
    return moved(given, given["self"], lambda index: (*index[:axis], *index[axis + 1 :]))


def squeeze(given: Given) -> Value:
    x, dims = given["self"], given["dim"]
    axes = {axis_of(dim, len(x.shape)) for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    gone = {axis for axis in axes if x.shape[axis] == 1}

    def place(index: Index) -> Index:
        left = iter(index)
        return tuple(whole(0) if axis in gone else next(left) for axis in range(len(x.shape)))

    return moved(given, x, place)


def select(given: Given) -> Value:
    x = given["self"]
    axis = axis_of(given["dim"], len(x.shape))
    at = whole(given["index"] % x.shape[axis])
    return moved(given, x, lambda index: (*index[:axis], at, *index[axis:]))


def slice_of(given: Given) -> Value:
    x, step = given["self"], given["step"]
    axis = axis_of(given["dim"], len(x.shape))
    start, _, _ = slice(given["start"], given["end"]).indices(x.shape[axis])
    return moved(given, x, lambda index: replaced(index, axis, index[axis] * step + start))


def flip(given: Given) -> Value:
    axes = {axis_of(dim, len(given.shape)) for dim in given["dims"]}
    sizes = given.shape
    return moved(
        given, given["self"],
        lambda index: tuple(sizes[i] - 1 - at if i in axes else at for i, at in enumerate(index)),
    )  # fmt: skip


def replaced(index: Index, axis: int, at: Any) -> Index:
    return (*index[:axis], at, *index[axis + 1 :])


def cat(given: Given) -> Value:
    parts = given["tensors"]
    axis = axis_of(given["dim"], len(given.shape))

    def at(index: Index) -> Any:
        end = given.shape[axis]
        result = None
        for part in reversed(parts):
            start = end - part.shape[axis]
            own = part.at(replaced(index, axis, index[axis] - start))
            result = own if result is None else tirx.if_then_else(index[axis] < end, own, result)
            end = start
        return result

    return Value(shape=given.shape, at=at, cost=1 + sum(part.cost for part in parts))


def stack(given: Given) -> Value:
    parts = given["tensors"]
    axis = axis_of(given["dim"], len(given.shape))

    def at(index: Index) -> Any:
        own = (*index[:axis], *index[axis + 1 :])
        result = parts[-1].at(own)
        for turn in reversed(range(len(parts) - 1)):
            result = tirx.if_then_else(index[axis] == turn, parts[turn].at(own), result)
        return result

    return Value(shape=given.shape, at=at, cost=1 + sum(part.cost for part in parts))


# ---------------------------------------------------------------- borders


def padded(x: Value, before: Sequence[int], shape: tuple[int, ...], fill: float) -> Value:
    """x with numbers around it; negative borders cut."""

    def at(index: Index) -> Any:
        own = tuple(i - b for i, b in zip(index, before, strict=True))
        tests = [
            test
            for i, b, size, new in zip(own, before, x.shape, shape, strict=True)
            for test, needed in ((i >= 0, b > 0), (i < size, new - b > size))
            if needed
        ]
        return tirx.if_then_else(tirx.all(*tests), x.at(own), number(fill)) if tests else x.at(own)

    return Value(shape=shape, at=at, cost=x.cost + 2)


def borders(given: Given) -> list[int]:
    """What lies before each axis; `pad` names the last axis first."""
    pads, rank = given["pad"], len(given.shape)
    before = [0] * rank
    for i in range(len(pads) // 2):
        before[rank - 1 - i] = pads[2 * i]
    return before


def constant_pad(given: Given) -> Value:
    return padded(given["self"], borders(given), given.shape, float(given["value"] or 0.0))


def pad(given: Given) -> Value | None:
    """Mirrored, repeated at the edge, or a constant."""
    x, mode, before = given["self"], given["mode"], borders(given)
    if mode == "constant":
        return constant_pad(given)
    if mode not in ("reflect", "replicate"):
        return None

    def own(i: Any, b: int, size: int, new: int) -> Any:
        if new == size:
            return i
        inside = i - b
        if mode == "replicate":
            return tirx.max(tirx.min(inside, whole(size - 1)), whole(0))
        mirrored = tirx.Select(inside < 0, -inside, inside)
        return tirx.Select(mirrored >= size, whole(2 * (size - 1)) - mirrored, mirrored)

    return moved(
        given, x,
        lambda index: tuple(
            own(i, b, size, new) for i, b, size, new in zip(index, before, x.shape, given.shape, strict=True)
        ), 2,
    )  # fmt: skip


# ---------------------------------------------------------------- other sizes


def ratio(given: Given, axis: int, spatial: int) -> float:
    """Pixels of the image per pixel of the result, as torch takes it: 1 / factor where one is given."""
    factors = given.arguments.get("scale_factors")
    old, new = int(given["input"].shape[axis]), given.shape[axis]
    return old / new if factors is None else 1.0 / float(factors[spatial])


def nearest(given: Given) -> Value:
    """x[floor(i ratio)], for as many axes behind the channels as there are"""
    x = given["input"]

    def place(index: Index) -> Index:
        found = list(index)
        for spatial, axis in enumerate(range(2, len(index))):
            size, step = x.shape[axis], ratio(given, axis, spatial)
            at = tirx.floor(index[axis].astype("float32") * number(step)).astype("int32")
            found[axis] = tirx.min(at, whole(size - 1))
            if given.shape[axis] % size == 0 and math.isclose(step, size / given.shape[axis]):
                found[axis] = tirx.floordiv(index[axis], given.shape[axis] // size)
        return tuple(found)

    return moved(given, x, place, 2)


def linear(given: Given) -> Value:
    """Between the two nearest pixels of each axis behind the channels; bilinear for two of them."""
    x, rank = given["input"], len(given.shape)

    def at(index: Index) -> Any:
        def between(axis: int, found: Index) -> Any:
            if axis == rank:
                return x.at(found)
            size, new = x.shape[axis], given.shape[axis]
            i = index[axis].astype("float32")
            if given["align_corners"]:
                place = i * number((size - 1) / (new - 1) if new > 1 else 0.0)
            else:
                middle = (i + number(0.5)) * number(ratio(given, axis, axis - 2)) - number(0.5)
                place = tirx.max(middle, number(0.0))
            low = tirx.min(tirx.floor(place).astype("int32"), whole(size - 1))
            high = tirx.min(low + 1, whole(size - 1))
            first, last = (between(axis + 1, replaced(found, axis, at)) for at in (low, high))
            return named(place - low.astype("float32"), lambda w: first * (number(1.0) - w) + last * w)

        return between(2, index)

    return Value(shape=given.shape, at=at, cost=(x.cost + 8) * 2 ** (rank - 2))
