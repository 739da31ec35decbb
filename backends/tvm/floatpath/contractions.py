"""Sums of products: matrices, and convolutions over any number of axes.

matmul     y[.., i, j]    = sum_k a[.., i, k] b[.., k, j]
conv       y[n, o, p..]   = sum_{c, k..} x[n, g C + c, p s + k d ..] w[o, c, k..] + b[o]      g: o's group
transposed                 a convolution of x with zeros between its pixels, and w turned around
"""

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from qcompiler.backends.tvm.floatpath.movement import padded
from qcompiler.backends.tvm.floatpath.reductions import over, reduced
from qcompiler.backends.tvm.floatpath.values import Given, Index, Value, number, repeated


def product(given: Given, a: Value, b: Value) -> Value:
    """[.., I, K] x [.., K, J]; vectors are matrices of one row or column."""
    making = given.making
    a, b = making.stored(a), making.stored(b)
    row, column = len(a.shape) > 1, len(b.shape) > 1

    def at(index: Index, inner: Index) -> Any:
        (k,), index = inner, tuple(index)
        *outer, j = index if column else (*index, None)
        *outer, i = outer if row else (*outer, None)
        left = repeated(a, (*outer, i, k)) if row else a.at((k,))
        right = repeated(b, (*outer, k, j)) if column else b.at((k,))
        return left * right

    return over(making, given.shape, [a.shape[-1]], at, te.sum)


def matmul(given: Given) -> Value:
    return product(given, *list(given.arguments.values())[:2])


def added(given: Given) -> Value:
    """beta c + alpha a b"""
    names = ("mat1", "mat2") if "mat1" in given.arguments else ("batch1", "batch2")
    found = product(given, *(given[name] for name in names))
    c, alpha, beta = given["self"], number(given["alpha"]), number(given["beta"])
    return Value(
        shape=given.shape, cost=c.cost + 3,
        at=lambda index: repeated(c, index) * beta + found.at(index) * alpha,
    )  # fmt: skip


def linear(given: Given) -> Value:
    """x w^T + b: both are read along k, which is what the lanes of a register sum."""
    x, w = given.making.stored(given["input"]), given.making.stored(given["weight"])
    products = Value(
        shape=(*given.shape, w.shape[1]), cost=1,
        at=lambda index: x.at((*index[:-2], index[-1])) * w.at(index[-2:]),
    )  # fmt: skip
    return biased(reduced(given.making, products, (len(given.shape),), te.sum), given["bias"], -1)


def biased(value: Value, bias: Value | None, axis: int) -> Value:
    if bias is None:
        return value
    return Value(
        shape=value.shape, cost=value.cost + 1, at=lambda index: value.at(index) + bias.at((index[axis],))
    )


def conv(given: Given) -> Value | None:
    x, w = given["input"], given["weight"]
    spatial = len(w.shape) - 2
    if len(x.shape) != spatial + 2:
        return None  # without a batch
    stride, dilation = (wide(given[name], spatial) for name in ("stride", "dilation"))
    reach = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
    padding = given["padding"]
    match padding:
        case "same":
            before = [r // 2 for r in reach]
        case "valid":
            before = [0] * spatial
        case _:
            before = wide(padding, spatial)
    need = [(p - 1) * s + r + 1 for p, s, r in zip(given.shape[2:], stride, reach, strict=True)]
    return biased(convolved(given, x, w, before, need, stride, dilation), given["bias"], 1)


def convolved(
    given: Given, x: Value, w: Value, before: Sequence[int], need: Sequence[int], stride: Sequence[int],
    dilation: Sequence[int],
) -> Value:  # fmt: skip
    """w: [O, C / groups, K..]; `before`: zeros before each axis; `need`: how long each is with all zeros."""
    making = given.making
    framed = (*x.shape[:2], *need)
    x = making.stored(x if framed == x.shape else padded(x, (0, 0, *before), framed, 0.0))
    members, outputs = w.shape[1], given.shape[1] // given["groups"]

    def at(index: Index, inner: Index) -> Any:
        (n, o, *places), (c, *kernel) = index, inner
        channel = tirx.floordiv(o, outputs) * members + c if given["groups"] > 1 else c
        pixels = [p * s + k * d for p, s, k, d in zip(places, stride, kernel, dilation, strict=True)]
        return x.at((n, channel, *pixels)) * w.at((o, c, *kernel))

    return over(making, given.shape, w.shape[1:], at, te.sum)


def transposed(given: Given) -> Value | None:
    """w: [C, O / groups, K..]"""
    x, w, groups = given["input"], given["weight"], given["groups"]
    spatial = len(w.shape) - 2
    if len(x.shape) != spatial + 2:
        return None
    stride, padding, dilation = (wide(given[name], spatial) for name in ("stride", "padding", "dilation"))
    kernel, outputs, members = w.shape[2:], w.shape[1], w.shape[0] // groups
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]

    def between(index: Index) -> Any:
        tests = [tirx.floormod(i, s) == 0 for i, s in zip(index[2:], stride, strict=True) if s > 1]
        places = [tirx.floordiv(i, s) for i, s in zip(index[2:], stride, strict=True)]
        own = x.at((*index[:2], *places))
        return tirx.if_then_else(tirx.all(*tests), own, number(0.0)) if tests else own

    spaced = Value(
        shape=(*x.shape[:2], *((size - 1) * s + 1 for size, s in zip(x.shape[2:], stride, strict=True))),
        at=between, cost=x.cost + 2,
    )  # fmt: skip

    def turned(index: Index) -> Any:
        o, c, *places = index
        own = [k - 1 - at for k, at in zip(kernel, places, strict=True)]
        return w.at((tirx.floordiv(o, outputs) * members + c, tirx.floormod(o, outputs), *own))

    weight = Value(shape=(outputs * groups, members, *kernel), at=turned, cost=0)
    before = [r - p for r, p in zip(reach, padding, strict=True)]
    need = [size + r for size, r in zip(given.shape[2:], reach, strict=True)]
    ones = [1] * spatial
    return biased(convolved(given, spaced, weight, before, need, ones, dilation), given["bias"], 1)


def wide(value: Any, axes: int) -> list[int]:
    """A number for each axis."""
    found = [value] if isinstance(value, int) else list(value)
    return found * axes if len(found) == 1 else found
