"""The kernels on torch's tensors, in place of the operators' own implementations on a CPU."""

import threading
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.tvm.build import ALIGNMENT, compiled, processor_for
from qcompiler.backends.tvm.isa import Isa, isa_for
from qcompiler.backends.tvm.threads import Team
from qcompiler.backends.tvm.training.draws import draws
from qcompiler.backends.tvm.training.recall import recall
from qcompiler.backends.tvm.training.store import store
from qcompiler.errors import TargetError
from qcompiler.ir.storage import laid_out
from qcompiler.numerics.groupwise import GROUP, compress, decompress
from qcompiler.numerics.packing import WIDE
from qcompiler.numerics.philox import Purpose, check_draws
from qcompiler.target.machine import this_cpu

KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
FEWEST = 8  # lanes that a word of one bit for each can be read in
WORTH_SHARING = 1 << 17  # elements of a thread: 0.1 ms, where to wake one takes up to 0.07

team = cache(Team)
busy = threading.Lock()


@cache
def isa() -> Isa:
    found = isa_for(this_cpu().features)
    if found is None or found.lanes < FEWEST:
        raise TargetError("there are no kernels for training on this CPU", why="they want AVX2")
    return found


@cache
def kernel(isa: Isa, make: Callable[..., Any], *form: Any) -> Callable[..., None]:
    """A function compiled, once in a process: 0.1 s."""
    name = make.__name__
    made: Any = compiled([make(*form, isa.lanes, name)], processor_for(isa))[name]
    made.release_gil = True
    run: Callable[..., None] = made
    return run


def stored(x: Tensor, key: Tensor, tensor: int, bits: int) -> tuple[Tensor, Tensor]:
    """`ops.qcompiler.store`."""
    if x.dtype == torch.float16:
        x = x.float()  # as the reference computes
    if x.dtype not in KINDS or bits not in WIDE:
        return compress(x, bits, None)  # which refuses it
    check_draws(x.numel(), key, tensor, Purpose.SAVED_ACTIVATION)
    flat, key, count, groups = in_row(x.detach()), in_row(key), x.numel(), groups_of(x.numel())
    packed = torch.empty(groups * GROUP * bits // 8, dtype=torch.uint8)
    bounds = torch.empty(groups, 2, dtype=torch.bfloat16)
    end = filled(flat[count - count % GROUP :])
    given = (flat.data_ptr(), end.data_ptr(), count, key.data_ptr(), tensor)
    run(kernel(isa(), store, bits, KINDS[x.dtype]), (*given, packed.data_ptr(), bounds.data_ptr()), groups)
    return packed, bounds


def recalled(
    packed: Tensor, bounds: Tensor, bits: int, shape: list[int], stride: list[int], dtype: torch.dtype
) -> Tensor:
    """`ops.qcompiler.recall`."""
    count, groups = prod(shape), groups_of(prod(shape))
    if bits not in WIDE or packed.shape != (groups * GROUP * bits // 8,) or bounds.shape != (groups, 2):
        return decompress(packed, bounds, bits, count)  # which refuses it
    x = torch.empty(count, dtype=dtype if dtype in KINDS else torch.float32)
    packed, bounds = in_row(packed), in_row(bounds)
    given = (packed.data_ptr(), bounds.data_ptr(), count, x.data_ptr())
    run(kernel(isa(), recall, bits, KINDS[x.dtype]), given, groups)
    return laid_out(x.to(dtype), shape, stride)


def drawn(key: Tensor, count: int, tensor: int, purpose: int, offset: int = 0) -> Tensor:
    """`ops.qcompiler.draws`."""
    check_draws(count, key, tensor, purpose, offset)
    start, groups = offset // GROUP, groups_of(offset + count) - offset // GROUP
    values, key = torch.empty(groups * GROUP), in_row(key)
    run(kernel(isa(), draws), (key.data_ptr(), tensor, purpose, start, values.data_ptr()), groups)
    return values[offset - start * GROUP :][:count]


def run(function: Callable[..., None], given: Sequence[int], groups: int) -> None:
    """All groups, divided among as many threads as torch has, where it pays and nobody else divides his."""
    threads = min(torch.get_num_threads(), groups * GROUP // WORTH_SHARING)
    if threads < 2 or not busy.acquire(blocking=False):
        function(*given, 0, groups)
        return
    try:
        ends = [groups * part // threads for part in range(threads + 1)]
        team(threads).run(lambda part: function(*given, *ends[part : part + 2]), lambda: None)
    finally:
        busy.release()


def groups_of(count: int) -> int:
    return -(-count // GROUP)


def in_row(x: Tensor) -> Tensor:
    """The elements in row-major order, on a cache line; a copy where they are not."""
    flat = x.reshape(-1).contiguous()
    return flat if flat.data_ptr() % ALIGNMENT == 0 else flat.clone()


def filled(rest: Tensor) -> Tensor:
    """A group filled up with its last element."""
    return torch.cat((rest, rest[-1:].expand(GROUP - len(rest)))) if len(rest) else rest
