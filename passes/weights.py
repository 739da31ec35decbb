"""Scales of a weight: symmetric, one per output channel or per group of inputs.

s[c] = max|W[c]| / qmax        or the scale of least squared error among a grid of smaller ranges,
                               or one that was learned
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qcompiler.numerics import (
    Granularity,
    IntFormat,
    PerBlock,
    PerChannel,
    PerGroup,
    QuantParams,
    Scheme,
    dequantize,
    params_from_range,
    parse_format,
    quantize,
    reduce_range,
    scale_shape,
)
from qcompiler.passes.grid import read_grid
from qcompiler.passes.groups import summed
from qcompiler.plan import WeightSpec

MOST_BIAS = 2**30  # half of what 32 bits hold; the other half is for the products
BIAS = IntFormat(bits=32, signed=True)
SHRINKS = tuple(1 - step / 50 for step in range(1, 21))  # 0.98 .. 0.60 of the full range


def weight_params(tensor: Tensor, planned: WeightSpec) -> QuantParams:
    """Scale and zero point of a weight [out, in, ...] as its spec says; scales are in its type for them."""
    params = exact_params(tensor, planned)
    rounded = params.scale.to(getattr(torch, planned.scale_type)).to(params.scale.dtype)
    return replace(params, scale=rounded)


def exact_params(tensor: Tensor, planned: WeightSpec) -> QuantParams:
    """The same before scales are rounded.

    A smaller range than the full one would pass the limit, so with one there is nothing to search.
    """
    format, granularity = parse_format(planned.format), granularity_of(planned)
    if planned.observer == "grid":
        assert isinstance(format, IntFormat)
        return read_grid(tensor, format, granularity)
    tensor = tensor.float()
    if planned.observer == "learned":
        shape = scale_shape(tensor.shape, granularity)
        return learned_params(torch.tensor(planned.scales, device=tensor.device).reshape(shape), planned)
    lo, hi = reduce_range(tensor, granularity)
    if isinstance(format, IntFormat) and 0 < planned.limit < format.qmax:
        # Codes up to the limit use the scale of a range that is wider by as much as they are narrower.
        wider = format.qmax / planned.limit
        return params_from_range(lo * wider, hi * wider, format, granularity, scheme="symmetric")
    params = params_from_range(lo, hi, format, granularity, scheme=scheme_of(planned))
    return params if planned.observer == "minmax" else least_error(tensor, params, squared)


def learned_params(scale: Tensor, planned: WeightSpec) -> QuantParams:
    """The parameters of a symmetric weight whose scales were learned."""
    format = parse_format(planned.format)
    narrow = replace(format, restricted=format.signed) if isinstance(format, IntFormat) else format
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return QuantParams(scale=scale, zero_point=zero, format=narrow, granularity=granularity_of(planned))


def has_free_scales(planned: WeightSpec) -> bool:
    """Whether the scales of a weight may be learned: it has no zero points, and no limit below its format."""
    format = parse_format(planned.format)
    limited = isinstance(format, IntFormat) and 0 < planned.limit < format.qmax
    return scheme_of(planned) == "symmetric" and not limited


def granularity_of(planned: WeightSpec) -> Granularity:
    if planned.square:
        return PerBlock(sizes=(planned.group_size, planned.group_size))
    return PerGroup(axis=1, size=planned.group_size) if planned.group_size else PerChannel(axis=planned.axis)


def scheme_of(planned: WeightSpec) -> Scheme:
    """Groups of an unsigned format have zero points of their own; integer kernels take none but zero."""
    format = parse_format(planned.format)
    has_zeros = bool(planned.group_size) and isinstance(format, IntFormat) and not format.signed
    return "asymmetric" if has_zeros else "symmetric"


def with_room_for_bias(params: QuantParams, bias: Tensor, input_scale: float) -> QuantParams:
    """s_w[c]  -->  max(s_w[c], |b[c]| / (s_x 2^30)): the bias in steps of s_x s_w[c] fits 32 bits.

    Only a channel whose weights are vanishingly small beside its bias is touched.
    """
    least = bias.abs().double() / (input_scale * MOST_BIAS)
    return replace(params, scale=torch.maximum(params.scale, least.float()))


def bias_codes(bias: Tensor, input_scale: float, weight_scale: Tensor) -> Tensor:
    """rne(b / (s_x s_w)) in int32."""
    step = torch.tensor(input_scale, dtype=torch.float32) * weight_scale
    return torch.round(bias.double() / step.double()).clamp(-(2**31), 2**31 - 1).to(torch.int32)


def bias_params(input_scale: float, weight_scale: Tensor) -> QuantParams:
    """Steps of s_x s_w[c] in int32."""
    scale = torch.tensor(input_scale, dtype=torch.float32) * weight_scale
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return QuantParams(scale=scale, zero_point=zero, format=BIAS, granularity=PerChannel(axis=0))


Measure = Callable[[Tensor, QuantParams], Tensor]
"""An error [out, in, ...] -> what it costs, in the shape of the scales."""


def squared(error: Tensor, params: QuantParams) -> Tensor:
    return summed(error * error, params)


def least_error(
    tensor: Tensor, full: QuantParams, measure: Measure, shrinks: Sequence[float] = SHRINKS
) -> QuantParams:
    """For every scale, the range whose rounding and clipping errors together cost least."""

    def cost(params: QuantParams) -> Tensor:
        return measure(dequantize(quantize(tensor, params), params) - tensor, params)

    lo, hi = reduce_range(tensor, full.granularity)
    unsigned = isinstance(full.format, IntFormat) and not full.format.signed
    scheme: Scheme = "asymmetric" if unsigned and isinstance(full.granularity, PerGroup) else "symmetric"
    best, least = full, cost(full)
    for shrink in shrinks:
        tried = params_from_range(lo * shrink, hi * shrink, full.format, full.granularity, scheme=scheme)
        found = cost(tried)
        best = chosen(found < least, tried, best)
        least = torch.minimum(found, least)
    return best


def chosen(where: Tensor, first: QuantParams, second: QuantParams) -> QuantParams:
    """Of every scale, the first one's parameters where a condition holds, elsewhere the second one's."""
    return replace(
        second,
        scale=torch.where(where, first.scale, second.scale),
        zero_point=torch.where(where, first.zero_point, second.zero_point),
    )
