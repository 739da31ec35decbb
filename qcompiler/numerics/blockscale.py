"""Block-scaled formats: MX (a power of two per block), NVFP4 (E4M3 per block, float32 per tensor)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from qcompiler.errors import RecipeError
from qcompiler.numerics.exponent import ceil_log2, exp2, floor_log2
from qcompiler.numerics.formats import Format, parse_format
from qcompiler.numerics.granularity import Granularity, PerGroup, reduce_range
from qcompiler.numerics.integer import IntFormat
from qcompiler.numerics.minifloat import FloatFormat
from qcompiler.numerics.quantize import QuantParams

MXRule = Literal["floor", "rceil", "even"]
MX_BLOCK = PerGroup(axis=-1, size=32)
NVFP4_BLOCK = PerGroup(axis=-1, size=16)


def mx_params(
    x: Tensor, element: Format, granularity: Granularity = MX_BLOCK, *, rule: MXRule = "rceil"
) -> QuantParams:
    """One scale 2^k per block (OCP Microscaling Formats 1.0); `e8m0_encode` gives its stored code.

    floor  k = floor_log2(amax) - emax                        saturates in (max, 2^(emax + 1))
    rceil  k = ceil_log2(amax / max)                          never saturates
    even   k = floor_log2(amax rounded to M bits) - emax

    Integer elements carry an implied 2^-(bits - 2): int8 means -127/64 .. 127/64, and the scale returned is
    2^(k - 6). All-zero blocks get k = 0. The scale is kept a normal float32, which widens blocks
    below 2^-118 or so.
    """
    if rule not in get_args(MXRule):
        raise RecipeError(f'unknown MX rule "{rule}"', fix=f"use one of {', '.join(get_args(MXRule))}")
    implied, mantissa_bits, largest = _element(element)
    amax = _block_amax(x, granularity).double()
    emax = int(floor_log2(torch.tensor(largest, dtype=torch.float64)))
    if rule == "rceil":
        k = ceil_log2(amax / largest)
    elif rule == "floor":
        k = floor_log2(amax) - emax
    else:
        k = floor_log2(amax) + _rounds_up(amax, mantissa_bits) - emax
    k = k.masked_fill(amax == 0, 0).clamp(-126 - implied, 127)
    scale = exp2(k + implied)
    format = (
        IntFormat(bits=element.bits, signed=True, restricted=True)
        if isinstance(element, IntFormat)
        else element
    )
    return QuantParams(
        scale=scale,
        zero_point=torch.zeros_like(scale, dtype=torch.int32),
        format=format,
        granularity=granularity,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class NVFP4Params:
    """The stored scales of NVFP4, and the product that elements are divided by.

    params.scale = float32(block_scale * tensor_scale), block_scale = decode of `block_codes` (E4M3)
    """

    tensor_scale: Tensor
    block_codes: Tensor
    params: QuantParams


def nvfp4_params(x: Tensor, granularity: Granularity = NVFP4_BLOCK) -> NVFP4Params:
    """Scales of NVFP4: E2M1 codes, an E4M3 scale per block, a float32 scale per tensor.

    s_t = amax_t / (448 * 6)        s_b = e4m3((amax_b / 6) / s_t)        q = e2m1(x / (s_b * s_t))

    A block too small for E4M3 gets its smallest positive number. With 16x16 blocks Q(W)^T = Q(W^T).
    """
    block, element = _minifloat("e4m3"), _minifloat("e2m1")
    amax = _block_amax(x, granularity).double()
    largest = amax.max()
    tensor_scale = (largest / (block.max * element.max)).to(torch.float32)
    tensor_scale = torch.where(largest == 0, torch.ones_like(tensor_scale), tensor_scale)
    # s_b * s_t has to stay normal down to the smallest s_b
    tensor_scale = tensor_scale.clamp(min=torch.finfo(torch.float32).tiny / block.min_subnormal)
    codes = block.encode((amax / element.max / tensor_scale.double()).clamp(min=block.min_subnormal))
    scale = block.decode(codes) * tensor_scale
    params = QuantParams(
        scale=scale,
        zero_point=torch.zeros_like(scale, dtype=torch.int32),
        format=element,
        granularity=granularity,
    )
    return NVFP4Params(tensor_scale=tensor_scale, block_codes=codes, params=params)


def _block_amax(x: Tensor, granularity: Granularity) -> Tensor:
    lo, hi = reduce_range(x, granularity)
    return torch.maximum(-lo, hi)


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
