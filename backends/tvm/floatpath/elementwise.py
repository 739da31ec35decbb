"""Ops by element: y[i] = f(a[i], b[i], ..), operands repeated along axes of one."""

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.floatpath.functions import Functions, named
from qcompiler.backends.tvm.floatpath.values import Given, Value, as_value, number, repeated

Row = Callable[[Given], Value | None]
FUNCTION = 12  # operations of exp and its kin


def by_element(given: Given, operands: list[Value], function: Callable[..., Any], cost: int) -> Value:
    return Value(
        shape=given.shape,
        at=lambda index: function(*(repeated(operand, index) for operand in operands)),
        cost=cost + sum(operand.cost for operand in operands),
    )


def unary(function: Callable[[Functions, Any], Any], cost: int = 1, *, reads: int = 1) -> Row:
    """f(x); `reads`: how often f names its argument."""

    def row(given: Given) -> Value:
        x = next(iter(given.arguments.values()))

        def once(value: Any) -> Any:
            functions = given.making.functions
            return named(value, lambda v: function(functions, v)) if reads > 1 else function(functions, value)

        return by_element(given, [x], once, cost)

    return row


def binary(function: Callable[[Any, Any], Any]) -> Row:
    """f(a, alpha b) where the op has an alpha."""

    def row(given: Given) -> Value | None:
        alpha = given.arguments.get("alpha", 1)
        if given.arguments.get("rounding_mode") is not None:
            return None
        first, second = (as_value(given[name]) for name in ("self", "other"))
        if alpha == 1:
            return by_element(given, [first, second], function, 1)
        return by_element(given, [first, second], lambda a, b: function(a, b * number(alpha)), 2)

    return row


def reversed_subtract(given: Given) -> Value:
    x, other, alpha = given["self"], as_value(given["other"]), given["alpha"]
    return by_element(given, [other, x], lambda a, b: a - b * number(alpha), 2)


def clamp(given: Given) -> Value | None:
    """Bounds that are numbers, by whatever name the op calls them."""
    bounds = [given.arguments.get(name) for name in ("min", "min_val")]
    ceilings = [given.arguments.get(name) for name in ("max", "max_val")]
    low, high = (next((x for x in found if x is not None), None) for found in (bounds, ceilings))
    if isinstance(low, Value) or isinstance(high, Value):
        return None
    return by_element(given, [given["self"]], lambda x: cut(x, low, high), 2)


def cut(x: Any, low: float | None, high: float | None) -> Any:
    """Written so that what is no number stays none."""
    if low is not None:
        x = named(x, lambda v: tirx.Select(v < number(low), number(low), v))
    return x if high is None else named(x, lambda v: tirx.Select(v > number(high), number(high), v))


def power(given: Given) -> Value | None:
    """Exponents that need no logarithm."""
    found = POWERS.get(given["exponent"])
    if found is None:
        return None
    return by_element(given, [given["self"]], lambda x: named(x, found), 2)


POWERS: dict[Any, Callable[[Any], Any]] = {
    0.5: tirx.sqrt, 1: lambda x: x, 2: lambda x: x * x, 3: lambda x: x * x * x,
    -1: lambda x: number(1.0) / x, -0.5: lambda x: number(1.0) / tirx.sqrt(x),
}  # fmt: skip


def leaky_relu(given: Given) -> Value:
    slope = number(given["negative_slope"])
    return by_element(
        given, [given["self"]], lambda x: named(x, lambda v: tirx.Select(v < number(0.0), v * slope, v)), 2
    )


def elu(given: Given) -> Value:
    """scale x above zero, scale alpha (e^(s x) - 1) below"""
    alpha, scale, inside = (given[name] for name in ("alpha", "scale", "input_scale"))
    exp = given.making.functions.exp

    def at(x: Any) -> Any:
        below = (exp(x * number(inside)) - number(1.0)) * number(alpha * scale)
        return tirx.Select(x < number(0.0), below, x * number(scale))

    return by_element(given, [given["self"]], lambda x: named(x, at), FUNCTION)


def gelu(given: Given) -> Value:
    functions, approximate = given.making.functions, given["approximate"] == "tanh"

    def at(x: Any) -> Any:
        if approximate:
            inner = functions.tanh((x + x * x * x * number(0.044715)) * number(math.sqrt(2 / math.pi)))
        else:
            inner = functions.erf(x * number(math.sqrt(0.5)))
        return x * number(0.5) * (inner + number(1.0))

    return by_element(given, [given["self"]], lambda x: named(x, at), FUNCTION)


def prelu(given: Given) -> Value:
    """A slope per channel, which is axis 1."""
    x, slope = given["self"], given["weight"]

    def at(index: Any) -> Any:
        factor = slope.at((index[1] if slope.shape != (1,) and len(index) > 1 else tirx.const(0, "int32"),))
        return named(x.at(index), lambda v: tirx.Select(v < number(0.0), v * factor, v))

    return Value(shape=given.shape, at=at, cost=x.cost + 2)


def lerp(given: Given) -> Value:
    weight = number(given["weight"])
    first, last = given["self"], given["end"]
    return by_element(given, [first, last], lambda a, b: named(a, lambda a: a + (b - a) * weight), 3)


def batch_norm(given: Given) -> Value | None:
    """(x - mean) / sqrt(variance + eps) gain + bias, per channel, which is axis 1"""
    if given["training"] or given["running_mean"] is None:
        return None
    x, mean, variance = (given[name] for name in ("input", "running_mean", "running_var"))
    gain, bias, epsilon = given["weight"], given["bias"], number(given["eps"])

    def at(index: Any) -> Any:
        channel = (index[1],)
        result = (x.at(index) - mean.at(channel)) / tirx.sqrt(variance.at(channel) + epsilon)
        result = result if gain is None else result * gain.at(channel)
        return result if bias is None else result + bias.at(channel)

    return Value(shape=given.shape, at=at, cost=x.cost + 6)


def sigmoid(functions: Functions, x: Any) -> Any:
    return number(1.0) / (functions.exp(-x) + number(1.0))


def relu(functions: Functions, x: Any) -> Any:
    return tirx.Select(x < number(0.0), number(0.0), x)


def larger(a: Any, b: Any) -> Any:
    return named(a, lambda a: named(b, lambda b: tirx.Select(tirx.any(a > b, tirx.isnan(a)), a, b)))


def smaller(a: Any, b: Any) -> Any:
    return named(a, lambda a: named(b, lambda b: tirx.Select(tirx.any(a < b, tirx.isnan(a)), a, b)))
