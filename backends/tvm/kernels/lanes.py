"""What the lanes of registers make together."""

from collections.abc import Callable
from functools import reduce
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder


def across(k: Builder, value: Any, dtype: str, lanes: int, joined: Callable[[Any, Any], Any]) -> Any:
    """What all lanes make together, in every lane: halves are exchanged and joined."""
    apart = lanes // 2
    held = k.keep(value, dtype, lanes)
    while apart:
        other = tirx.Shuffle([held], [lane ^ apart for lane in range(lanes)])
        held = k.keep(joined(held, other), dtype, lanes)
        apart //= 2
    return held


def plus(a: Any, b: Any) -> Any:
    return a + b


def total(k: Builder, sums: list[Any], lanes: int) -> Any:
    """The sum of all lanes of some registers of floats, in every lane."""
    return across(k, reduce(plus, [k.load(register, 0, lanes) for register in sums]), "float32", lanes, plus)


def tree(k: Builder, values: list[Any], join: Any, dtype: str, lanes: int) -> Any:
    """One vector of many, neighbours first."""
    while len(values) > 1:
        pairs = [k.keep(join(a, b), dtype, lanes) for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[len(pairs) * 2 :]
    return values[0]


def lowest(k: Builder, vector: Any, join: Any, dtype: str, lanes: int) -> Any:
    """The same as one number: halves are joined until one lane is left."""
    while lanes > 1:
        lanes //= 2
        low, high = (tirx.Shuffle([vector], list(range(start, start + lanes))) for start in (0, lanes))
        vector = k.keep(join(low, high), dtype, lanes)
    return vector
