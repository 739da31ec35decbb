"""The operators that torch lacks, `torch.ops.qcompiler.*`: schema, reference and shape of each in one block.

Scales and zero points are tensors, one per tensor, channel (`axis`) or block of `block` along `axis`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.numerics import Granularity, PerChannel, PerGroup, PerTensor, QuantParams, parse_format
from qcompiler.numerics import dequantize as decode
from qcompiler.numerics import quantize as encode

# Codes of these formats are held in torch's own type, so that they export as themselves.
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def granularity(axis: int | None, block: int) -> Granularity:
    """(None, 0) -> per tensor; (axis, 0) -> per channel; (axis, n) -> groups of n along axis."""
    if axis is None:
        return PerTensor()
    return PerGroup(axis=axis, size=block) if block else PerChannel(axis=axis)


def parameters(scale: Tensor, zero_point: Tensor, format: str, axis: int | None, block: int) -> QuantParams:
    stored = zero_point.view(torch.uint8) if zero_point.dtype in FLOAT8 else zero_point
    return QuantParams(
        scale=scale,
        zero_point=stored.to(torch.int32),
        format=parse_format(format),
        granularity=granularity(axis, block),
    )


@torch.library.custom_op("qcompiler::quantize", mutates_args=())
def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, format: str, axis: int | None = None, block: int = 0
) -> Tensor:
    """sat(rne(x / s) + z); codes in the storage type of `zero_point`, shape of x."""
    codes = encode(x.float(), parameters(scale, zero_point, format, axis, block))
    return codes.view(zero_point.dtype) if zero_point.dtype in FLOAT8 else codes.to(zero_point.dtype)


@quantize.register_fake
def _(
    x: Tensor, scale: Tensor, zero_point: Tensor, format: str, axis: int | None = None, block: int = 0
) -> Tensor:
    return torch.empty_like(x, dtype=zero_point.dtype)


@torch.library.custom_op("qcompiler::dequantize", mutates_args=())
def dequantize(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    format: str,
    axis: int | None = None,
    block: int = 0,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """s * (q - z) in float32, or rounded to another type once; shape of q."""
    codes = q.view(torch.uint8) if q.dtype in FLOAT8 else q
    return decode(codes, parameters(scale, zero_point, format, axis, block)).to(dtype or torch.float32)


@dequantize.register_fake
def _(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    format: str,
    axis: int | None = None,
    block: int = 0,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return torch.empty_like(q, dtype=dtype or torch.float32)


@torch.library.custom_op("qcompiler::dynamic_quantize", mutates_args=())
def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes, scale and zero point from the tensor's own range (ONNX DynamicQuantizeLinear).

    lo = min(0, min x), hi = max(0, max x), s = (hi - lo) / 255, z = sat(rne(-lo / s)).
    """
    lo, hi = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (hi - lo) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round(-lo / scale).clamp(0, 255)
    codes = (torch.round(x / scale) + zero_point).clamp(0, 255)
    return codes.to(torch.uint8), scale, zero_point.to(torch.uint8)


@dynamic_quantize.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(()), x.new_empty((), dtype=torch.uint8)


@torch.library.custom_op("qcompiler::global_avg_pool", mutates_args=())
def global_avg_pool(x: Tensor) -> Tensor:
    """[N, C, *space] -> [N, C, 1, ...]: the mean over space."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@global_avg_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], *[1] * (x.dim() - 2)))


global_avg_pool.register_autograd(
    lambda ctx, gradient: gradient.expand(ctx.shape) / math.prod(ctx.shape[2:]),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "shape", inputs[0].shape),
)


@torch.library.custom_op("qcompiler::pad_codes", mutates_args=())
def pad_codes(q: Tensor, zero_point: Tensor, pads: list[int]) -> Tensor:
    """Pad codes with what stands for 0; `pads` from the last axis on, as in torch; negative ones cut."""
    return F.pad(q, pads, value=int(zero_point))


@pad_codes.register_fake
def _(q: Tensor, zero_point: Tensor, pads: list[int]) -> Tensor:
    shape = list(q.shape)
    for step, (begin, end) in enumerate(zip(pads[::2], pads[1::2], strict=True), start=1):
        shape[-step] += begin + end
    return q.new_empty(shape)


@torch.library.custom_op("qcompiler::space_to_depth", mutates_args=())
def space_to_depth(x: Tensor, block: int) -> Tensor:
    """[N, C, H, W] -> [N, s s C, H / s, W / s]: pixel (i, j) of a block and channel c at (i s + j) C + c."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // block, block, width // block, block)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // block, width // block).clone()


@space_to_depth.register_fake
def _(x: Tensor, block: int) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty((batch, channels * block**2, height // block, width // block))


def depth_to_space(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    """The inverse: every element goes back to where it was taken from."""
    batch, channels, height, width = gradient.shape
    block = ctx.block
    blocks = gradient.reshape(batch, block, block, channels // block**2, height, width)
    placed = blocks.permute(0, 3, 4, 1, 5, 2)
    return placed.reshape(batch, channels // block**2, height * block, width * block), None


space_to_depth.register_autograd(
    depth_to_space, setup_context=lambda ctx, inputs, output: setattr(ctx, "block", inputs[1])
)


@torch.library.custom_op("qcompiler::integer_linear", mutates_args=())
def integer_linear(
    q: Tensor, scale: Tensor, zero_point: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """float32(sum_k (q - z) w) * float32(s s_w) + b: [..., K] codes times [K, N] codes, float result."""
    accumulator = (q.double() - zero_point.double()) @ weight.double()
    result = accumulator.float() * (scale * weight_scale)
    return result if bias is None else result + bias


@integer_linear.register_fake
def _(
    q: Tensor, scale: Tensor, zero_point: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    return torch.empty((*q.shape[:-1], weight.shape[1]), dtype=torch.float32, device=q.device)
