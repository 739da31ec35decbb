"""The definitions that everything else is compared with: ranges to parameters, quantize, dequantize."""

import logging
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.numerics.exponent import ceil_log2, exp2
from qcompiler.numerics.formats import Format
from qcompiler.numerics.granularity import Granularity, spread
from qcompiler.numerics.integer import IntFormat
from qcompiler.numerics.minifloat import FloatFormat
from qcompiler.numerics.rounding import round_by

Scheme = Literal["asymmetric", "symmetric", "one_sided", "power_of_two"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantParams:
    """How a tensor is quantized: D(q) = scale * (q - zero_point).

    `scale` (float32, positive, normal) and `zero_point` (int32, qmin <= z <= qmax, 0 for minifloats)
    have the shape that `granularity` gives. Zero is represented exactly: D(zero_point) = 0.
    """

    scale: Tensor
    zero_point: Tensor
    format: Format
    granularity: Granularity

    def __post_init__(self) -> None:
        if self.scale.dtype != torch.float32 or self.zero_point.dtype != torch.int32:
            raise RecipeError(
                f"scale is {self.scale.dtype} and zero point {self.zero_point.dtype}",
                fix="use float32 and int32",
            )
        if self.scale.shape != self.zero_point.shape:
            raise RecipeError(
                f"scale of shape {tuple(self.scale.shape)}, zero point of {tuple(self.zero_point.shape)}"
            )
        if not bool(((self.scale >= torch.finfo(torch.float32).tiny) & self.scale.isfinite()).all()):
            raise RecipeError("a scale is not a positive normal float32 number")
        qmin, qmax = (self.format.qmin, self.format.qmax) if isinstance(self.format, IntFormat) else (0, 0)
        if not bool(((self.zero_point >= qmin) & (self.zero_point <= qmax)).all()):
            raise RecipeError(
                f"a zero point lies outside {qmin} .. {qmax}", why=f"the format is {self.format}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantParams):
            return NotImplemented
        return (
            (self.format, self.granularity) == (other.format, other.granularity)
            and torch.equal(self.scale, other.scale)
            and torch.equal(self.zero_point, other.zero_point)
        )

    def __hash__(self) -> int:
        return hash((self.format, self.granularity, tuple(self.scale.flatten().tolist())))


def params_from_range(
    lo: Tensor | float, hi: Tensor | float, format: Format, granularity: Granularity, *, scheme: Scheme
) -> QuantParams:
    """Scale and zero point for values in [lo, hi], which is first widened to contain zero.

    asymmetric    s = (hi - lo) / (qmax - qmin)      z = sat(rne(qmin - lo / s))
    symmetric     s = max(-lo, hi) / (qmax - z)      z = 0 for signed formats, mid-range for unsigned
    one_sided     s = hi / (qmax - qmin)             z = qmin
    power_of_two  s = 2^ceil(log2(s'))               s', z from one_sided where the format is unsigned
                                                     and lo >= 0, from symmetric elsewhere
    minifloat     s = max(-lo, hi) / max             z = 0        (any scheme; power_of_two as above)

    Computed in float64 and rounded once, outward, to the float32 that is used from then on. All-zero
    ranges get s = 1. "symmetric" and a signed "power_of_two" return the restricted form of the format.
    """
    if scheme not in get_args(Scheme):
        raise RecipeError(f'unknown scheme "{scheme}"', fix=f"use one of {', '.join(get_args(Scheme))}")
    lo = torch.as_tensor(lo, dtype=torch.float64).clamp(max=0)
    hi = torch.as_tensor(hi, dtype=torch.float64).clamp(min=0)
    if not bool((lo.isfinite() & hi.isfinite()).all()):
        raise CalibrationError("a range is not finite", fix="look for NaN or inf in the observed tensor")

    amax = torch.maximum(-lo, hi)
    if isinstance(format, FloatFormat):
        scale = _store(amax / format.max, scheme)
        return QuantParams(
            scale=scale,
            zero_point=torch.zeros_like(scale, dtype=torch.int32),
            format=format,
            granularity=granularity,
        )

    steps = format.qmax - format.qmin
    if scheme == "asymmetric":
        scale = _store((hi - lo) / steps, scheme)
        zero = torch.round(format.qmin - lo / scale.double()).clamp(format.qmin, format.qmax)
        zero = zero.masked_fill(amax == 0, _middle(format))
    elif scheme == "one_sided":
        scale = _store(hi / steps, scheme)
        zero = torch.full_like(lo, format.qmin)
    else:
        above = (lo == 0) & (scheme == "power_of_two") & (not format.signed)
        zero = torch.full_like(lo, _middle(format)).masked_fill(above, format.qmin)
        scale = _store(amax / (format.qmax - zero), scheme)
        format = replace(format, restricted=format.signed)
    return QuantParams(scale=scale, zero_point=zero.to(torch.int32), format=format, granularity=granularity)


def quantize(
    x: Tensor, params: QuantParams, rounding: str = "half_even", noise: Tensor | None = None
) -> Tensor:
    """Q(x) = sat(round(x / s) + z), in `format.storage`: a true float32 division, and z added after rounding.

    +inf -> qmax, -inf -> qmin, NaN -> qmin (as ONNX Runtime does). For minifloats the codes of x / s,
    rounded half to even or stochastically.
    """
    scale, zero = _spread(params, x.shape)
    ratio = x.to(torch.float32) / scale
    format = params.format
    if isinstance(format, FloatFormat):
        if (rounding, noise is None) not in (("half_even", True), ("stochastic", False)):
            raise RecipeError(
                f'rounding "{rounding}" with{"out" if noise is None else ""} noise of {format}',
                why="minifloats round half to even, or stochastically with noise",
            )
        return format.encode(ratio, noise)
    # float32 holds every code of 16 bits or fewer exactly, and a sum that it would round is saturated anyway
    rounded = round_by(ratio, rounding, noise).to(_exact(format))
    return (
        (rounded + zero)
        .clamp_(format.qmin, format.qmax)
        .nan_to_num_(nan=float(format.qmin))
        .to(format.storage)
    )


def dequantize(q: Tensor, params: QuantParams) -> Tensor:
    """D(q) = s * (q - z), float32; for minifloats s * decode(q)."""
    scale, zero = _spread(params, q.shape)
    if isinstance(params.format, FloatFormat):
        return params.format.decode(q) * scale
    return (q.to(_exact(params.format)) - zero).to(torch.float32) * scale


def fake_quantize(
    x: Tensor, params: QuantParams, rounding: str = "half_even", noise: Tensor | None = None
) -> Tensor:
    """F(x) = D(Q(x)), float32."""
    return dequantize(quantize(x, params, rounding, noise), params)


def _spread(params: QuantParams, shape: torch.Size) -> tuple[Tensor, Tensor]:
    zero = params.zero_point.to(torch.float32 if params.format.bits <= 16 else torch.float64)
    return spread(params.scale, shape, params.granularity), spread(zero, shape, params.granularity)


def _exact(format: IntFormat) -> torch.dtype:
    """A float type in which codes, zero points and their differences are exact."""
    return torch.float32 if format.bits <= 16 else torch.float64


def _middle(format: IntFormat) -> int:
    return 0 if format.signed else (format.qmax + 1) // 2


def _store(scale: Tensor, scheme: Scheme) -> Tensor:
    """Round a float64 scale outward to a normal float32 number; 1 where it is zero."""
    tiny = torch.finfo(torch.float32).tiny
    if bool(((scale > 0) & (scale < tiny)).any()):
        _log.warning("a scale below %g was widened to it", tiny)
    scale = scale.masked_fill(scale == 0, 1.0).clamp(min=tiny)
    if scheme == "power_of_two":
        scale = exp2(ceil_log2(scale).clamp(max=128)).double()
    stored = scale.to(torch.float32)
    stored = torch.where(stored < scale, torch.nextafter(stored, torch.full_like(stored, torch.inf)), stored)
    if not bool(stored.isfinite().all()):
        raise CalibrationError("a scale exceeds float32", fix="look for a huge value in the observed tensor")
    return stored
