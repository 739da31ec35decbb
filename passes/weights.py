"""Scales of a weight: symmetric, one per output channel or per group of inputs.

s[c] = max|W[c]| / qmax        or the scale of least squared error among a grid of smaller ranges
"""

from dataclasses import replace

import torch
from torch import Tensor

from qcompiler.numerics import (
    Granularity,
    IntFormat,
    PerChannel,
    PerGroup,
    QuantParams,
    dequantize,
    params_from_range,
    parse_format,
    quantize,
    reduce_range,
)
from qcompiler.plan import WeightSpec

MOST_BIAS = 2**30  # half of what 32 bits hold; the other half is for the products
SHRINKS = tuple(1 - step / 50 for step in range(1, 21))  # 0.98 .. 0.60 of the full range


def weight_params(tensor: Tensor, planned: WeightSpec) -> QuantParams:
    """Scale and (zero) zero point of a weight [out, in, ...] as its spec says.

    A smaller range than the full one would pass the limit, so with one there is nothing to search.
    """
    format = parse_format(planned.format)
    granularity: Granularity = PerChannel(axis=planned.axis)
    if planned.group_size:
        granularity = PerGroup(axis=1, size=planned.group_size)
    lo, hi = reduce_range(tensor, granularity)
    if isinstance(format, IntFormat) and 0 < planned.limit < format.qmax:
        # Codes up to the limit use the scale of a range that is wider by as much as they are narrower.
        wider = format.qmax / planned.limit
        return params_from_range(lo * wider, hi * wider, format, granularity, scheme="symmetric")
    params = params_from_range(lo, hi, format, granularity, scheme="symmetric")
    return params if planned.observer == "minmax" else least_error(tensor, lo, hi, params)


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


def least_error(tensor: Tensor, lo: Tensor, hi: Tensor, best: QuantParams) -> QuantParams:
    """For every scale, the range whose rounding and clipping errors together are least."""

    def error(params: QuantParams) -> Tensor:
        return summed((dequantize(quantize(tensor, params), params) - tensor) ** 2, params)

    scale, least = best.scale, error(best)
    for shrink in SHRINKS:
        tried = params_from_range(lo * shrink, hi * shrink, best.format, best.granularity, scheme="symmetric")
        found = error(tried)
        scale = torch.where(found < least, tried.scale, scale)
        least = torch.minimum(found, least)
    return replace(best, scale=scale)


def summed(lost: Tensor, params: QuantParams) -> Tensor:
    """Sum over the elements of each scale, in the shape of the scales."""
    if isinstance(params.granularity, PerGroup):
        rows, columns = lost.shape
        return lost.reshape(rows, columns // params.granularity.size, -1).sum(2)
    return lost.flatten(1).sum(1)
