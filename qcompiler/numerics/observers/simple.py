"""Observers that keep two numbers: running extremes, their moving average, and a constant."""

import math
from dataclasses import dataclass

from torch import Tensor

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.numerics.observers.histogram import finite_values
from qcompiler.numerics.observers.ranges import Range


@dataclass(kw_only=True)
class MinMax:
    """The smallest and largest element of all batches."""

    name: str = "tensor"
    low: float = math.inf
    high: float = -math.inf

    def observe(self, x: Tensor) -> None:
        """Take in one batch."""
        values = finite_values(x, self.name)
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def range(self) -> Range:
        """(smallest, largest)."""
        return _seen(self.name, self.low, self.high)

    def merge(self, other: "MinMax") -> None:
        """Take in what another has seen."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass(kw_only=True)
class MovingAverage:
    """m <- (1 - a) m + a * batch extreme, at both ends; starts at the first batch, depends on the order."""

    name: str = "tensor"
    rate: float = 0.01
    low: float = math.inf
    high: float = -math.inf

    def observe(self, x: Tensor) -> None:
        """Take in one batch."""
        values = finite_values(x, self.name)
        low, high = float(values.min()), float(values.max())
        if self.low > self.high:
            self.low, self.high = low, high
        self.low += self.rate * (low - self.low)
        self.high += self.rate * (high - self.high)

    def range(self) -> Range:
        """The two averages."""
        return _seen(self.name, self.low, self.high)

    def merge(self, other: "MovingAverage") -> None:
        """Refuses: the result would depend on which came first."""
        raise CalibrationError(
            f"moving averages of {self.name} cannot be merged",
            why="they depend on the order",
            fix="calibrate in one process, or use minmax or mse",
        )


@dataclass(kw_only=True)
class Constant:
    """A range that is known beforehand: a fixed scale, or one that the hardware imposes."""

    low: float
    high: float
    name: str = "tensor"

    def observe(self, x: Tensor) -> None:
        """Look at nothing."""

    def range(self) -> Range:
        """The constant."""
        return self.low, self.high

    def merge(self, other: "Constant") -> None:
        """Refuse another constant."""
        if (self.low, self.high) != (other.low, other.high):
            raise RecipeError(f"{self.name} has two constant ranges, {self.range()} and {other.range()}")


def _seen(name: str, low: float, high: float) -> Range:
    if low > high:
        raise CalibrationError(f"{name} was never observed", fix="give calibration data that reaches it")
    return low, high
