"""A tensor under construction: a number for every place, which is computed where it is read, or stored.

relu(x + y)  -->  at(i, j) = max(x[i, j] + y[i, j], 0)        nothing is in memory until `stored`
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import te, tirx

from qcompiler.backends.tvm.floatpath.functions import Functions

Index = tuple[Any, ...]  # one expression per axis
COSTLY = 8  # operations that are not done twice: to store and to load again is about that much


@dataclass(frozen=True, kw_only=True)
class Value:
    """float32 numbers of a shape; `cost` operations for each of them, 0 where it lies in memory."""

    shape: tuple[int, ...]
    at: Callable[[Index], Any]
    cost: int = 0


@dataclass(frozen=True, kw_only=True)
class Making:
    """What ops are written for: `lanes` of a vector register (1: sums are plain), and its functions."""

    functions: Functions
    lanes: int
    stages: list[Any] = field(default_factory=list)  # what is stored, in the order of their computation

    def compute(self, shape: Sequence[int], at: Callable[..., Any]) -> Value:
        """A tensor in memory."""
        held = te.compute(tuple(shape), at, name=f"s{len(self.stages)}")
        self.stages.append(held)
        return loaded(held, shape)

    def copied(self, value: Value) -> Value:
        return self.compute(value.shape, lambda *index: value.at(index))

    def stored(self, value: Value) -> Value:
        """In memory, if it is not there yet."""
        return value if value.cost == 0 else self.copied(value)

    def read_again(self, value: Value, times: int) -> Value:
        """A value that is read so many times: stored where that is cheaper than to compute it again."""
        return self.stored(value) if times > 1 and value.cost >= COSTLY else value


@dataclass(frozen=True, kw_only=True)
class Given:
    """One op of the graph as its row in the table sees it: arguments by name, tensors as values."""

    making: Making
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]  # of the result

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


def loaded(tensor: Any, shape: Sequence[int]) -> Value:
    return Value(shape=tuple(shape), at=lambda index: tensor[index] if index else tensor[()])


def number(value: float) -> Any:
    return tirx.const(float(value), "float32")


def whole(value: int) -> Any:
    return tirx.const(value, "int32")


def repeated(value: Value, index: Index) -> Any:
    """The number of a value that broadcasting puts at a place of a larger shape."""
    own = index[len(index) - len(value.shape) :] if value.shape else ()
    return value.at(tuple(whole(0) if size == 1 else i for i, size in zip(own, value.shape, strict=True)))


def constant(value: float) -> Value:
    return Value(shape=(), at=lambda index: number(value))


def as_value(argument: Any) -> Value:
    return argument if isinstance(argument, Value) else constant(argument)


def axis_of(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


def joined(index: Index, inner: Index, axes: Sequence[int]) -> Index:
    """`index` for the axes that are left, `inner` for those of `axes`."""
    outer, within = iter(index), iter(inner)
    return tuple(next(within) if axis in axes else next(outer) for axis in range(len(index) + len(inner)))


def values_in(argument: Any) -> Iterator[Value]:
    """The tensors of an argument, which may be a list."""
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from values_in(part)
