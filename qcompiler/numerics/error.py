"""How far two tensors are apart, and how far an accumulator can go."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.errors import InputError


@dataclass(kw_only=True)
class ErrorMeter:
    """Sums in float64 over any number of batches, from which every error measure follows."""

    count: int = 0
    reference_power: float = 0.0
    actual_power: float = 0.0
    product: float = 0.0
    noise_power: float = 0.0
    max_abs: float = 0.0

    def update(self, reference: Tensor, actual: Tensor) -> None:
        """Take in one batch."""
        if reference.shape != actual.shape:
            raise InputError(f"cannot compare shape {tuple(reference.shape)} with {tuple(actual.shape)}")
        if reference.numel() == 0:
            return
        y, z = reference.detach().double().flatten(), actual.detach().double().flatten()
        noise = y - z
        self.count += y.numel()
        self.reference_power += float(y @ y)
        self.actual_power += float(z @ z)
        self.product += float(y @ z)
        self.noise_power += float(noise @ noise)
        largest = float(noise.abs().max())
        self.max_abs = math.nan if math.isnan(largest + self.max_abs) else max(self.max_abs, largest)

    def merge(self, other: "ErrorMeter") -> None:
        """Take in what another meter has seen."""
        self.count += other.count
        self.reference_power += other.reference_power
        self.actual_power += other.actual_power
        self.product += other.product
        self.noise_power += other.noise_power
        self.max_abs = max(self.max_abs, other.max_abs)

    @property
    def sqnr(self) -> float:
        """10 log10(sum y^2 / sum (y - z)^2) in dB; inf where equal, -inf where only the reference is 0."""
        if self.noise_power == 0:
            return math.inf
        return 10 * math.log10(self.reference_power / self.noise_power) if self.reference_power else -math.inf

    @property
    def cosine(self) -> float:
        """sum y z / (|y| |z|); 1 where both are zero, 0 where one is."""
        if self.reference_power == 0 or self.actual_power == 0:
            return float(self.reference_power == self.actual_power)
        return self.product / math.sqrt(self.reference_power) / math.sqrt(self.actual_power)

    @property
    def mse(self) -> float:
        """sum (y - z)^2 / n; 0 before the first batch."""
        return self.noise_power / max(self.count, 1)


def _measure(reference: Tensor, actual: Tensor) -> ErrorMeter:
    meter = ErrorMeter()
    meter.update(reference, actual)
    return meter


def sqnr(reference: Tensor, actual: Tensor) -> float:
    """Signal to quantization noise in dB, inf when equal; 6.02 dB is one bit."""
    return _measure(reference, actual).sqnr


def cosine(reference: Tensor, actual: Tensor) -> float:
    """Cosine of the angle between the two as vectors."""
    return _measure(reference, actual).cosine


def mse(reference: Tensor, actual: Tensor) -> float:
    """Mean squared error."""
    return _measure(reference, actual).mse


def max_abs(reference: Tensor, actual: Tensor) -> float:
    """Largest absolute difference."""
    return _measure(reference, actual).max_abs


def lsb_distance(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """|a - b| in units of the last place of the output format, float64.

    |a - b| / scale        where scale broadcasts against a and b
    """
    return (a.double() - b.double()).abs() / torch.as_tensor(scale, dtype=torch.float64)


def accumulator_bound(
    weight_codes: Tensor, zero_point: int, qmin: int, qmax: int, bias: Tensor | None = None
) -> Tensor:
    """The largest |accumulator| that any input can cause, per output (int64); must stay below 2^31.

    sum_k |qw[c, k]| * max(qmax - z, z - qmin) + |qb[c]|

    `weight_codes` are [out, ...], their own zero point already taken off; z, qmin and qmax are the input's.
    """
    weights = weight_codes.to(torch.int64).abs().flatten(1).sum(1)
    bound = weights * max(qmax - zero_point, zero_point - qmin)
    return bound if bias is None else bound + bias.to(torch.int64).abs()
