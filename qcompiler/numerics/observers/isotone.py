"""A range that keeps the order of the two largest: for classifier heads, where only the winner matters."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.numerics.granularity import PerTensor
from qcompiler.numerics.integer import IntFormat
from qcompiler.numerics.observers.histogram import FloatArray, finite_values
from qcompiler.numerics.observers.ranges import Range
from qcompiler.numerics.quantize import QuantParams, Scheme, params_from_range, quantize


@dataclass(kw_only=True)
class Isotone:
    """Keeps the two largest of each row, L1 >= L2, and picks the scale that most rows admit.

    argmax survives if  s < L1 - L2  and  L2 / s < qmax - z - 1/2  and  L1 / s > qmin - z + 1/2

    The first is strict because half-even takes both 1.5 and 2.5 to 2; the others keep the two from being
    clipped to one code. They give each row an interval of scales; a sweep over the ends finds where most
    intervals overlap. Rows with L1 = L2 have no winner.
    """

    format: IntFormat
    scheme: Scheme = "symmetric"
    name: str = "tensor"
    top: list[FloatArray] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.scheme not in ("symmetric", "one_sided"):
            raise RecipeError(
                f"isotone is not defined for scheme {self.scheme}",
                why="its zero point is not known",
                fix="use symmetric or one_sided",
            )

    def observe(self, x: Tensor) -> None:
        """Take in rows of scores, classes along the last axis."""
        finite_values(x, self.name)
        if x.dim() < 1 or x.shape[-1] < 2:
            raise CalibrationError(f"{self.name} has no second class", why=f"its shape is {tuple(x.shape)}")
        best = x.detach().to("cpu", torch.float32).reshape(-1, x.shape[-1]).topk(2).values
        self.top.append(best.double().numpy())

    def merge(self, other: "Isotone") -> None:
        """Take in what another has seen."""
        self.top.extend(other.top)

    def range(self) -> Range:
        """The range whose scale lies in the middle of the interval that most rows admit."""
        scale, (bottom, top) = self._scale(), self._levels()
        return scale * bottom, scale * top

    def survivors(self) -> tuple[int, int, int]:
        """(rows whose winner keeps a higher code than the second, rows, ties among them), counted."""
        rows = torch.from_numpy(self._rows())
        codes = quantize(rows, self._params())
        kept = int((codes[:, 0] > codes[:, 1]).sum())
        return kept, len(rows), int((rows[:, 0] == rows[:, 1]).sum())

    def _params(self) -> QuantParams:
        return params_from_range(*self.range(), self.format, PerTensor(), scheme=self.scheme)

    def _rows(self) -> FloatArray:
        if not self.top:
            raise CalibrationError(
                f"{self.name} was never observed", fix="give calibration data that reaches it"
            )
        return np.concatenate(self.top)

    def _levels(self) -> tuple[int, int]:
        """(qmin - z, qmax - z)."""
        params = params_from_range(-1.0, 1.0, self.format, PerTensor(), scheme=self.scheme)
        assert isinstance(params.format, IntFormat)
        zero = int(params.zero_point)
        return params.format.qmin - zero, params.format.qmax - zero

    def _scale(self) -> float:
        first, second = self._rows().T
        bottom, top = self._levels()
        lower, upper = np.maximum(second, 0.0) / (top - 0.5), first - second
        if bottom == 0:
            upper = np.minimum(upper, 2 * first)
        else:
            lower = np.maximum(lower, first / (bottom + 0.5))
        admissible = lower < upper
        lower, upper = np.sort(lower[admissible]), np.sort(upper[admissible])
        if lower.size == 0:  # no scale keeps any winner: at least clip none
            return max(float(np.abs(first).max()), 1.0) / top
        overlap = np.arange(1, lower.size + 1) - np.searchsorted(upper, lower, side="right")
        start = float(lower[np.argmax(overlap)])
        return (start + float(upper[np.searchsorted(upper, start, side="right")])) / 2
