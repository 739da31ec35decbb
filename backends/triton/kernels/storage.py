"""Floats in groups of 256 to codes of 8, 4, 2 or 1 bits and back, in one pass over memory each.

    m = the largest bfloat16 <= min        s = the smallest bfloat16 with s B >= max - m        B = 2^bits - 1
    t = (x - m) / s, 0 where s = 0         q = floor(t) + [u < t - floor(t)]
    x ~ q s + m

Every number is that of `numerics.groupwise`, to the last bit. bfloat16 is the upper half of a float32 here,
in integers: Triton's interpreter rounds it wrong, and reads subnormal numbers wrong.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcompiler.backends.triton.kernels.draws import WORDS, in_order, signed

GROUP = tl.constexpr(256)
INFINITY = tl.constexpr(0x7F800000)  # its bits
NAN = tl.constexpr(0x7FC0)  # of bfloat16
MAGNITUDE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def widened(half):
    """The float32 of a bfloat16, which is given by its bits."""
    return (half.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def narrowed(x):
    """The bits of the nearest bfloat16, half to even, as uint32."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where((bits & MAGNITUDE) <= INFINITY, (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16, NAN)


@triton.jit
def flipped(key):
    """int32 of a float32's bits  <-->  int32 in the floats' order: -NaN, -inf, .. -0, 0, .. inf, NaN."""
    return key ^ ((key >> 31) & MAGNITUDE)


@triton.jit
def floats(pointer, BFLOAT: tl.constexpr):
    """float32 of float32, of float16, or of the bits of bfloat16 in int16."""
    if BFLOAT:
        found = widened(tl.load(pointer).to(tl.uint16, bitcast=True))
    else:
        found = tl.load(pointer).to(tl.float32)
    return found


@triton.jit
def outward(x, STEPS: tl.constexpr):
    """(m, s) of the rows of x, bits of bfloat16 as uint32: m <= x, m + s STEPS >= x. NaN where x has one.

    Extremes are found among integers, where NaN lies at an end and the order of zeros cannot matter.
    """
    keys = flipped(x.to(tl.int32, bitcast=True))
    low, high = tl.min(keys, axis=1), tl.max(keys, axis=1)
    has_nan = (low < ~INFINITY) | (high > INFINITY)
    lowest = flipped(low).to(tl.float32, bitcast=True) + 0.0
    highest = flipped(high).to(tl.float32, bitcast=True) + 0.0
    near = narrowed(lowest)
    below = tl.where(near >= 0x8000, near + 1, near - 1)
    m = tl.where(widened(near) > lowest, below, near)
    span = highest - widened(m)
    near = narrowed(tl.div_rn(span, STEPS))
    s = tl.where(widened(near) * STEPS < span, near + 1, near)
    return tl.where(has_nan, NAN, m), tl.where(has_nan, NAN, s)


@triton.jit(do_not_specialize=("count", "tensor", "purpose"))
def store(
    x,
    key,
    packed,
    bounds,
    count,
    tensor,
    purpose,
    BITS: tl.constexpr,
    BFLOAT: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """x [count]  -->  packed uint8 [groups, GROUP BITS / 8] and bounds int32 [groups], m and above it s.

    GROUPS of them for each program. A last group that is not full is filled up with its last element.
    """
    STEPS: tl.constexpr = 2.0**BITS - 1.0
    PER_BYTE: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = GROUP // PER_BYTE
    first = tl.program_id(0).to(tl.int64) * GROUPS
    row = tl.arange(0, GROUPS)
    at = row[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    last = count - 1 - first * GROUP  # the last element, from this program's first on
    begin = x + first * GROUP
    if last >= GROUPS * GROUP - 1:
        values = floats(begin + at, BFLOAT)
    else:
        values = floats(begin + tl.minimum(at, last.to(tl.int32)), BFLOAT)
    low, span = outward(values, STEPS)
    there = row <= last // GROUP
    both = low | (span << 16)
    tl.store(bounds + first + row, both.to(tl.int32, bitcast=True), mask=there)
    t = tl.div_rn(values - widened(low)[:, None], widened(span)[:, None])
    t = tl.where(t >= 0.0, t, 0.0)  # NaN: 0 / 0 where s = 0, and what is not finite
    floor = t.to(tl.int32)
    noise = in_order(key, tensor, purpose, first * (GROUP // WORDS), GROUPS, GROUP)
    codes = floor + (noise < t - floor.to(tl.float32)).to(tl.int32)
    if last < GROUPS * GROUP - 1:
        end = tl.sum(tl.where(at == last, codes, 0), axis=1)
        codes = tl.where(at > last, end[:, None], codes)
    fields = tl.reshape(codes, (GROUPS, BYTES, PER_BYTE)) << (BITS * tl.arange(0, PER_BYTE))[None, None, :]
    into = (first + row)[:, None] * BYTES + tl.arange(0, BYTES)[None, :]
    tl.store(packed + into, tl.sum(fields, axis=2).to(tl.uint8), mask=there[:, None])


@triton.jit(do_not_specialize=("count",))
def recall(
    packed,
    bounds,
    x,
    count,
    BITS: tl.constexpr,
    BFLOAT: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """packed uint8 [groups, GROUP BITS / 8] and bounds int32 [groups]  -->  x [count]."""
    PER_BYTE: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = GROUP // PER_BYTE
    first = tl.program_id(0).to(tl.int64) * GROUPS
    row = tl.arange(0, GROUPS)
    last = count - 1 - first * GROUP
    there = row <= last // GROUP
    both = tl.load(bounds + first + row, mask=there, other=0).to(tl.uint32, bitcast=True)
    m, s = widened(both & 0xFFFF), widened(both >> 16)
    begin = first * BYTES + row[:, None] * BYTES + tl.arange(0, BYTES)[None, :]
    bytes = tl.load(packed + begin, mask=there[:, None], other=0).to(tl.int32)
    fields = bytes[:, :, None] >> (BITS * tl.arange(0, PER_BYTE))[None, None, :]
    codes = tl.reshape(fields & (2**BITS - 1), (GROUPS, GROUP))
    values = codes.to(tl.float32) * s[:, None] + m[:, None]
    if BFLOAT:
        found = narrowed(values).to(tl.uint16).to(tl.int16, bitcast=True)
    else:
        found = values.to(x.dtype.element_ty)
    at = row[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    into = x + first * GROUP + at
    if last >= GROUPS * GROUP - 1:
        tl.store(into, found)
    else:
        tl.store(into, found, mask=at <= last)


def launch_store(
    x: Tensor, key: Tensor, packed: Tensor, bounds: Tensor, tensor: int, purpose: int, bits: int,
    groups: int, options: Mapping[str, int],
) -> None:  # fmt: skip
    """Fill packed and bounds from x [count]; all contiguous, count > 0."""
    store[(triton.cdiv(len(bounds), groups),)](
        held(x), key, packed, bounds.view(torch.int32), len(x), signed(tensor), int(purpose), BITS=bits,
        BFLOAT=x.dtype == torch.bfloat16, GROUPS=groups, enable_fp_fusion=False, **options,
    )  # fmt: skip


def launch_recall(
    packed: Tensor, bounds: Tensor, x: Tensor, bits: int, groups: int, options: Mapping[str, int]
) -> None:
    """Fill x [count] from packed and bounds; all contiguous, count > 0."""
    recall[(triton.cdiv(len(bounds), groups),)](
        packed, bounds.view(torch.int32), held(x), len(x), BITS=bits,
        BFLOAT=x.dtype == torch.bfloat16, GROUPS=groups, enable_fp_fusion=False, **options,
    )  # fmt: skip


def held(x: Tensor) -> Tensor:
    """Floats as the kernels take them: bfloat16 by its bits."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x
