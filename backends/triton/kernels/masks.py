"""One bit for each element of a tensor of zeros and ones, eight to a byte, and back.

    b = sum_i [x_i != 0] 2^i            x_i = (b >> i) & 1        i = 0 .. 7

Elements are taken as whole numbers of their size: a float is zero where all its bits but the sign are, and
one where they are those of a one.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

HELD: Mapping[int, torch.dtype] = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers by their bytes."""


@triton.jit(do_not_specialize=("count",))
def store_mask(x, packed, count, FLOAT: tl.constexpr, BYTES: tl.constexpr):
    """x [count]  -->  packed uint8 [ceil(count / 8)], zeros behind the last element; BYTES a program."""
    first = tl.program_id(0).to(tl.int64) * BYTES
    at = tl.arange(0, 8 * BYTES)
    last = count - 1 - 8 * first
    begin = x + 8 * first + at
    values = tl.load(begin) if last >= 8 * BYTES - 1 else tl.load(begin, mask=at <= last, other=0)
    if FLOAT:
        values = values << 1  # both zeros
    marks = tl.reshape((values != 0).to(tl.int32), (BYTES, 8)) << tl.arange(0, 8)[None, :]
    into = tl.arange(0, BYTES)
    tl.store(packed + first + into, tl.sum(marks, axis=1).to(tl.uint8), mask=into <= last // 8)


@triton.jit(do_not_specialize=("count",))
def recall_mask(packed, x, count, ONE: tl.constexpr, BYTES: tl.constexpr):
    """packed uint8 [ceil(count / 8)]  -->  x [count], zeros and ONE."""
    first = tl.program_id(0).to(tl.int64) * BYTES
    at = tl.arange(0, 8 * BYTES)
    last = count - 1 - 8 * first
    begin = tl.arange(0, BYTES)
    bytes = tl.load(packed + first + begin, mask=begin <= last // 8, other=0).to(tl.int32)
    marks = tl.reshape((bytes[:, None] >> tl.arange(0, 8)[None, :]) & 1, (8 * BYTES,))
    found = tl.where(marks != 0, ONE, 0).to(x.dtype.element_ty)
    into = x + 8 * first + at
    if last >= 8 * BYTES - 1:
        tl.store(into, found)
    else:
        tl.store(into, found, mask=at <= last)


def launch_store(x: Tensor, packed: Tensor, bytes: int, options: Mapping[str, int]) -> None:
    """Fill packed from x [count]; both contiguous, count > 0."""
    store_mask[(triton.cdiv(len(packed), bytes),)](
        x.view(HELD[x.itemsize]), packed, len(x), FLOAT=x.is_floating_point(), BYTES=bytes,
        enable_fp_fusion=False, **options,
    )  # fmt: skip


def launch_recall(packed: Tensor, x: Tensor, bytes: int, options: Mapping[str, int]) -> None:
    """Fill x [count] from packed; both contiguous, count > 0."""
    one = int(torch.ones((), dtype=x.dtype).view(HELD[x.itemsize]))
    recall_mask[(triton.cdiv(len(packed), bytes),)](
        packed, x.view(HELD[x.itemsize]), len(x), ONE=one, BYTES=bytes, enable_fp_fusion=False, **options
    )
