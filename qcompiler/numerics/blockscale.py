"""Block-scaled formats: MX (a power of two per block), NVFP4 (E4M3 per block, float32 per tensor)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from qcompiler.errors import RecipeError
from qcompiler.numerics.exponent import ceil_log2, exp2, floor_log2
from qcompiler.numerics.formats import Format, parse_format
from qcompiler.numerics.granularity import Granularity, PerGroup, reduce_amax, spread
from qcompiler.numerics.integer import IntFormat
from qcompiler.numerics.minifloat import FloatFormat
from qcompiler.numerics.quantize import QuantParams
from qcompiler.numerics.scaling import amax_scale

MXRule = Literal["floor", "rceil", "even", "ceil"]
BlockRounding = Literal["nearest", "up"]
MX_BLOCK = PerGroup(axis=-1, size=32)
NVFP4_BLOCK = PerGroup(axis=-1, size=16)


def mx_scale(
    x: Tensor, element: Format, granularity: Granularity = MX_BLOCK, *, rule: MXRule = "rceil"
) -> Tensor:
    """One scale 2^k per block (OCP Microscaling Formats 1.0), float32; `e8m0_encode` gives its stored code.

    floor  k = floor_log2(amax) - emax                        saturates in (max, 2^(emax + 1))
    rceil  k = ceil_log2(amax / max)                          never saturates
    even   k = floor_log2(amax rounded to M bits) - emax
    ceil   k = ceil_log2(amax) - emax                         never saturates, and wastes up to a bit

    Integer elements carry an implied 2^-(bits - 2): int8 means -127/64 .. 127/64, and the scale returned is
    2^(k - 6). All-zero blocks get k = 0, blocks that are not finite NaN. The scale is kept a normal float32,
    which widens blocks below 2^-118 or so.
    """
    if rule not in get_args(MXRule):
        raise RecipeError(f'unknown MX rule "{rule}"', fix=f"use one of {', '.join(get_args(MXRule))}")
    implied, mantissa_bits, largest = _element(element)
    amax = reduce_amax(x, granularity).double()
    emax = math.frexp(largest)[1] - 1
    if rule == "rceil":
        k = ceil_log2(amax / largest)
    elif rule == "floor":
        k = floor_log2(amax) - emax
    elif rule == "ceil":
        k = ceil_log2(amax) - emax
    else:
        k = floor_log2(amax) + _rounds_up(amax, mantissa_bits) - emax
    k = k.masked_fill(amax == 0, 0).clamp(-126 - implied, 127)
    return exp2(k + implied).masked_fill(~amax.isfinite(), torch.nan)


def mx_params(
    x: Tensor, element: Format, granularity: Granularity = MX_BLOCK, *, rule: MXRule = "rceil"
) -> QuantParams:
    """The parameters of `mx_scale`; integer elements are restricted. What is not finite is refused."""
    format = (
        IntFormat(bits=element.bits, signed=True, restricted=True)
        if isinstance(element, IntFormat)
        else element
    )
    return _params(mx_scale(x, element, granularity, rule=rule), format, granularity)


@dataclass(frozen=True, kw_only=True, eq=False)
class NVFP4Scale:
    """The stored scales of NVFP4, and the product that elements are divided by.

    scale = float32(block_scale * tensor_scale)        block_scale = decode of `block_codes` (E4M3)
    """

    tensor_scale: Tensor
    block_codes: Tensor
    scale: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class NVFP4Params(NVFP4Scale):
    """The same as parameters, params.scale = scale."""

    params: QuantParams


def nvfp4_scale(
    x: Tensor, granularity: Granularity = NVFP4_BLOCK, *, rounding: BlockRounding = "nearest"
) -> NVFP4Scale:
    """Scales of NVFP4: E2M1 codes, an E4M3 scale per block, a float32 scale per tensor.

    s_t = amax_t / (448 * 6)        s_b = e4m3((amax_b / 6) / s_t)        q = e2m1(x / (s_b * s_t))

    nearest  half of the blocks saturate, by up to 1/16; the least error for elements rounded to nearest
    up       no block saturates: what stochastic rounding of the elements needs to have the right mean

    s_t is rounded outward. A block too small for E4M3 gets its smallest positive number. With 16x16 blocks
    Q(W)^T = Q(W^T). A tensor that is not finite gets NaN everywhere.
    """
    if rounding not in get_args(BlockRounding):
        raise RecipeError(
            f'unknown rounding of block scales "{rounding}"',
            fix=f"use {' or '.join(get_args(BlockRounding))}",
        )
    block, element = _minifloat("e4m3"), _minifloat("e2m1")
    amax = reduce_amax(x, granularity)
    # s_b * s_t has to stay normal down to the smallest s_b
    lowest = torch.finfo(torch.float32).tiny / block.min_subnormal
    tensor_scale = amax_scale(amax.max(), block.max * element.max).clamp(min=lowest)
    wanted = (amax.double() / element.max / tensor_scale.double()).clamp(block.min_subnormal, block.max)
    codes = block.encode(wanted)
    if rounding == "up":
        codes = codes + (block.decode(codes) < wanted).to(codes.dtype)
    scale = block.decode(codes) * tensor_scale
    return NVFP4Scale(tensor_scale=tensor_scale, block_codes=codes, scale=scale)


def nvfp4_params(
    x: Tensor, granularity: Granularity = NVFP4_BLOCK, *, rounding: BlockRounding = "nearest"
) -> NVFP4Params:
    """`nvfp4_scale` with its parameters. A tensor that is not finite is refused."""
    found = nvfp4_scale(x, granularity, rounding=rounding)
    params = _params(found.scale, _minifloat("e2m1"), granularity)
    return NVFP4Params(**vars(found), params=params)


def round_scaled(
    x: Tensor, scale: Tensor, element: FloatFormat, granularity: Granularity, noise: Tensor | None = None
) -> Tensor:
    """s round(x / s), float32: the values that a block-scaled x is stored as; x is of any float type.

    To nearest even, or with noise (draws from [0, 1), of x's size) stochastically. A scale that is NaN
    makes all values NaN that it is for. Reads no value, unlike `fake_quantize`.
    """
    wide = spread(scale, x.shape, granularity)
    draws = None if noise is None else noise.reshape(x.shape)
    return element.round(x.to(torch.float32) / wide, draws) * wide


def _params(scale: Tensor, format: Format, granularity: Granularity) -> QuantParams:
    return QuantParams(
        scale=scale,
        zero_point=torch.zeros_like(scale, dtype=torch.int32),
        format=format,
        granularity=granularity,
    )


def _element(element: Format) -> tuple[int, int, float]:
    """(log2 of the implied factor, mantissa bits, largest value) of an MX element."""
    if isinstance(element, FloatFormat):
        return 0, element.mantissa_bits, element.max
    if not element.signed or element.bits > 8:
        raise RecipeError(
            f"{element} is no MX element", fix="use a minifloat or a signed integer of 8 bits or fewer"
        )
    fraction = element.bits - 2
    return -fraction, fraction, element.qmax / 2**fraction


def _rounds_up(x: Tensor, bits: int) -> Tensor:
    """1 where x >= 0, rounded half to even to `bits` bits after the leading one, is the next power of two."""
    one = 1 << (bits + 1)
    return (torch.round(torch.frexp(x).mantissa * one) == one).to(torch.int32)


def _minifloat(name: str) -> FloatFormat:
    format = parse_format(name)
    assert isinstance(format, FloatFormat)
    return format
