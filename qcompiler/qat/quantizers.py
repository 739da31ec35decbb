"""The modules that round: one for every value and every weight of a plan, with a scale that lives.

    ste     s follows what is observed, then stands; a weight's follows the weight
    lsq     s is a parameter, from what was observed on
    pact    the highest value a = s (qmax - z) is a parameter, where no code stands for less than 0;
            else, and for weights, as ste

Observing keeps the share of a value's range that the plan has chosen to cover:

    e = max(x, 0) - min(x, 0) of a batch        m <- m + rate (e - m)        s = s_plan m / m_first
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn

from qcompiler.errors import CalibrationError
from qcompiler.numerics import (
    IntFormat,
    PerTensor,
    QuantParams,
    dequantize,
    fake_quantize,
    parse_format,
    pass_through,
    quantize_clipped,
    quantize_learned,
    quantize_through,
    step_gain,
)
from qcompiler.passes.groups import summed
from qcompiler.passes.weights import (
    bias_codes,
    bias_params,
    chosen,
    has_free_scales,
    learned_params,
    squared,
    weight_params,
    with_room_for_bias,
)
from qcompiler.plan import ValueSpec, WeightSpec

LEAST = 2.0**-10  # of the scale that a tensor started with: an optimizer may step over zero


@dataclass(frozen=True, kw_only=True)
class Observing:
    """For how many batches a value is observed, and how fast the average moves."""

    steps: int
    rate: float


class ValueQuantizer(nn.Module):
    """F(x) of one value and of those that share its scale; the scale stands once it was observed.

    State: `scale`, `zero_point`; `start`, the plan's scale; `first` and `extent`, the m of the module's
    docstring; `seen`, the number of batches that were observed.
    """

    scale: Tensor
    zero_point: Tensor
    start: Tensor
    first: Tensor
    extent: Tensor
    seen: Tensor

    def __init__(self, spec: ValueSpec, highest: float, observing: Observing) -> None:
        super().__init__()
        self.label, self.format, self.observing = spec.label, parse_format(spec.format), observing
        self.highest = highest
        for name, value in (("start", spec.scale), ("first", 0.0), ("extent", 0.0)):
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("zero_point", torch.tensor(spec.zero_point, dtype=torch.int32))
        self.register_buffer("seen", torch.tensor(0))
        self.hold(torch.tensor(spec.scale))

    def hold(self, scale: Tensor) -> None:
        self.register_buffer("scale", scale)

    @property
    def held(self) -> Tensor:
        return self.scale.detach()

    def write(self, scale: Tensor) -> None:
        self.scale.copy_(scale)

    @property
    def frozen(self) -> bool:
        return int(self.seen) >= self.observing.steps

    def freeze(self) -> None:
        self.seen.clamp_(min=self.observing.steps)

    @property
    def params(self) -> QuantParams:
        """Parameters as they are used: the scale within its bounds."""
        scale = torch.maximum(self.held, self.start * LEAST).clamp(max=self.highest)
        return QuantParams(
            scale=scale, zero_point=self.zero_point, format=self.format, granularity=PerTensor()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """F(x), and the scale that it was made with, ()."""
        learning = self.frozen
        if self.training and not learning:
            self.observe(x.detach())
        params = self.params
        return self.rounded(x, params, learning), params.scale

    def rounded(self, x: Tensor, params: QuantParams, learning: bool) -> Tensor:
        return quantize_through(x, params)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Move the average, and the scale with it; processes that train together see one batch."""
        if not x.numel():
            return
        low, high = torch.aminmax(x.float())
        reach = torch.stack([(-low).clamp(min=0), high.clamp(min=0)])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(reach, op=distributed.ReduceOp.MAX)
        extent = reach.sum()
        if not bool(extent.isfinite()):
            raise CalibrationError(
                f"'{self.label}' contains NaN or inf while it is observed", why="scales come from it",
                fix="lower the learning rate, or look for the overflow",
            )  # fmt: skip
        first = not int(self.seen)
        self.first.copy_(extent if first else self.first)
        self.extent.copy_(extent if first else self.extent + self.observing.rate * (extent - self.extent))
        self.seen += 1
        if bool(self.first > 0):
            self.write(self.start * (self.extent / self.first))


class LearnedStep(ValueQuantizer):
    """The scale is a parameter: LSQ, arXiv 1902.08153."""

    def hold(self, scale: Tensor) -> None:
        self.scale = nn.Parameter(scale)

    def write(self, scale: Tensor) -> None:
        self.scale.detach().copy_(scale)

    def rounded(self, x: Tensor, params: QuantParams, learning: bool) -> Tensor:
        count = x.numel() // max(x.shape[0], 1) if x.dim() else 1  # features of a sample: LSQ, section 2.2
        gain = step_gain(self.format, int(self.zero_point), max(count, 1)) if learning else 0.0
        return quantize_learned(x, self.scale, params, gain)


class LearnedBound(ValueQuantizer):
    """The value of the highest code is a parameter: PACT, arXiv 1805.06085."""

    bound: nn.Parameter

    @property
    def steps(self) -> int:
        assert isinstance(self.format, IntFormat)
        return self.format.qmax - int(self.zero_point)

    def hold(self, scale: Tensor) -> None:
        self.bound = nn.Parameter(scale * self.steps)

    @property
    def held(self) -> Tensor:
        return self.bound.detach() / self.steps

    def write(self, scale: Tensor) -> None:
        self.bound.detach().copy_(scale * self.steps)

    def rounded(self, x: Tensor, params: QuantParams, learning: bool) -> Tensor:
        bound = self.bound if learning else self.bound * 0 + self.bound.detach()
        return quantize_clipped(x, bound, params)


def has_no_negative(spec: ValueSpec) -> bool:
    format = parse_format(spec.format)
    return isinstance(format, IntFormat) and spec.zero_point == format.qmin


# ---------------------------------------------------------------- weights


class WeightQuantizer(nn.Module):
    """F(w) of one layer, and of its bias in steps of s_x s_w; scales follow from the weight."""

    def __init__(self, spec: WeightSpec, weight: Tensor) -> None:
        super().__init__()
        self.spec = spec

    def params(self, weight: Tensor) -> QuantParams:
        return weight_params(weight, self.spec)

    def rounded(self, weight: Tensor, params: QuantParams) -> Tensor:
        return quantize_through(weight, params)

    def forward(self, weight: Tensor, bias: Tensor | None = None, input_scale: Tensor | None = None) -> Any:
        """F(w); with a bias to round, both."""
        params = self.params(weight.detach())
        if bias is None or input_scale is None:
            return self.rounded(weight, params)
        params = with_room_for_bias(params, bias.detach(), float(input_scale))
        codes = bias_codes(bias.detach(), float(input_scale), params.scale)
        decoded = dequantize(codes, bias_params(float(input_scale), params.scale))
        return self.rounded(weight, params), pass_through(bias, decoded)


class LearnedWeight(WeightQuantizer):
    """The scales of a weight are a parameter."""

    start: Tensor

    def __init__(self, spec: WeightSpec, weight: Tensor) -> None:
        super().__init__(spec, weight)
        scale = first_scale(weight, spec)
        self.scale = nn.Parameter(scale.clone())
        self.register_buffer("start", scale.clone())

    def params(self, weight: Tensor) -> QuantParams:
        return learned_params(torch.maximum(self.scale.detach(), self.start * LEAST), self.spec)

    def rounded(self, weight: Tensor, params: QuantParams) -> Tensor:
        gain = step_gain(params.format, 0, weight.numel() // self.scale.numel())
        return quantize_learned(weight, self.scale, params, gain)


def first_scale(weight: Tensor, spec: WeightSpec) -> Tensor:
    """Of each scale the one of less squared error: of a search, or 2 mean|w| / sqrt(Q) as LSQ starts."""
    searched = weight_params(weight, replace(spec, observer="mse"))
    if not isinstance(searched.format, IntFormat):
        return searched.scale
    count = weight.numel() // searched.scale.numel()
    total = summed(weight.abs(), searched)
    mean = learned_params((total * (2 / count / searched.format.qmax**0.5)).clamp(min=1e-10), spec)
    errors = [squared(fake_quantize(weight, params) - weight, params) for params in (mean, searched)]
    return chosen(errors[0] < errors[1], mean, searched).scale


# ---------------------------------------------------------------- methods

METHODS: Mapping[str, tuple[type[ValueQuantizer], type[WeightQuantizer]]] = {
    "ste": (ValueQuantizer, WeightQuantizer),
    "lsq": (LearnedStep, LearnedWeight),
    "pact": (LearnedBound, WeightQuantizer),
}


def value_quantizer(method: str, spec: ValueSpec, highest: float, observing: Observing) -> ValueQuantizer:
    """The method's module for a value; a bound from above alone is learned where there is none below."""
    kind = METHODS[method][0]
    if kind is LearnedBound and not has_no_negative(spec):
        kind = ValueQuantizer
    return kind(spec, highest, observing)


def weight_quantizer(method: str, spec: WeightSpec, weight: Tensor) -> WeightQuantizer:
    kind = METHODS[method][1] if has_free_scales(spec) else WeightQuantizer
    return kind(spec, weight)
