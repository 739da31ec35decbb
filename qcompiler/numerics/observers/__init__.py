"""Observers: what is seen of a tensor during calibration, and the range that follows from it."""

from typing import Any, Protocol

from torch import Tensor

from qcompiler.errors import RecipeError
from qcompiler.numerics.observers.binned import KL, MSE, Percentile
from qcompiler.numerics.observers.histogram import Histogram
from qcompiler.numerics.observers.isotone import Isotone
from qcompiler.numerics.observers.ranges import Range, kl_range, minmax_range, percentile_range
from qcompiler.numerics.observers.search import (
    CANDIDATES,
    best_range,
    candidates,
    expected_error,
    mse_range,
)
from qcompiler.numerics.observers.simple import Constant, MinMax, MovingAverage


class Observer(Protocol):
    """What calibration needs of an observer; `merge` takes one of the same kind."""

    name: str

    def observe(self, x: Tensor) -> None:
        """Take in one batch."""

    def range(self) -> Range:
        """The range to quantize with."""

    def merge(self, other: Any) -> None:
        """Take in what another observer of the same kind has seen."""


OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "kl": KL,
    "mse": MSE,
    "isotone": Isotone,
    "constant": Constant,
}
"""Observers by name; one's own is another row."""


def make_observer(kind: str, **options: Any) -> Observer:
    """A fresh observer of that name; the options are its fields."""
    if kind not in OBSERVERS:
        raise RecipeError(f'unknown observer "{kind}"', fix=f"use one of {', '.join(OBSERVERS)}")
    return OBSERVERS[kind](**options)


__all__ = [
    "CANDIDATES",
    "KL",
    "MSE",
    "OBSERVERS",
    "Constant",
    "Histogram",
    "Isotone",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "Range",
    "best_range",
    "candidates",
    "expected_error",
    "kl_range",
    "make_observer",
    "minmax_range",
    "mse_range",
    "percentile_range",
]
