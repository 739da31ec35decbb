"""What every case needs: outputs full of poison, operands that end where memory does, equality of bits."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.tuning.problem import Problem

POISON = 77
MARGIN = 16
NOBODY = 0  # PROT_NONE of mprotect(2)


def poisoned(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A matrix, and the larger one that it lies in."""
    whole = torch.full((rows + 1, columns + MARGIN), POISON, dtype=torch.float32).to(dtype)
    return whole[:rows, :columns], whole


def poisoned_row(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same in one dimension."""
    matrix, whole = poisoned(1, count, dtype)
    return matrix[0], whole


def guarded(x: Tensor) -> Tensor:
    """A copy whose last byte is the last before a page that may not be touched."""
    size = x.numel() * x.itemsize
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    behind = ctypes.addressof(ctypes.c_char.from_buffer(memory, pages))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(behind), mmap.PAGESIZE, NOBODY) == 0
    copy = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=pages - size).view(x.shape)
    return copy.copy_(x)


def memory_of_others(
    shape: tuple[int, ...] | int, *, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """What `torch.empty` may give at worst: poison, and behind it a page that may not be touched."""
    return guarded(torch.full((shape,) if isinstance(shape, int) else shape, POISON).to(dtype))


@contextmanager
def as_on_a_device(ops: ModuleType, row: Configuration | None = None) -> Iterator[None]:
    """What a module does for tensors of a CUDA device it does for those of the CPU, kernels interpreted.

    row: what was measured to be the fastest, or None where nothing was.
    """

    def scheduled(problem: Problem, device: torch.device, default: Configuration) -> Configuration:
        return row or default

    with (
        mock.patch.object(ops, "capability", lambda device: 90),
        mock.patch.object(ops, "scheduled", scheduled, create=True),
        mock.patch.object(torch.cuda, "device", nullcontext),
    ):
        yield


def margin_is_untouched(whole: Tensor, rows: int, columns: int) -> bool:
    outside = torch.ones(whole.shape, dtype=torch.bool)
    outside[:rows, :columns] = False
    return bool((whole.float()[outside] == POISON_OF[whole.dtype]).all())


KINDS = (
    torch.bool, torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16,
    torch.float16, torch.float32,
)  # fmt: skip
POISON_OF = {dtype: torch.tensor(float(POISON)).to(dtype).float().item() for dtype in KINDS}


def bits(x: Tensor) -> Tensor:
    """Bits, but of NaN, of which there are many that mean the same."""
    sized = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.itemsize]
    return x.contiguous().view(sized).masked_fill(x.float().isnan(), 0)


def but_for_nan(found: Tensor, wanted: Tensor) -> Tensor:
    """What was found, with NaN where it is wanted: the interpreter makes a number of FP8 from it."""
    return torch.where(wanted.float().isnan(), wanted.float(), found.float()).to(found.dtype)


def same(found: Tensor, wanted: Tensor) -> bool:
    return bool(
        torch.equal(found.float().isnan(), wanted.float().isnan()) and torch.equal(bits(found), bits(wanted))
    )
