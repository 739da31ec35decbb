"""The operators of `ir.storage` and `ir.draws` on tensors of a CUDA device, `torch.ops.qcompiler.store` ...

Their numbers are those of `numerics.groupwise` and `numerics.philox`, to the last bit. What the reference
refuses, it is given to refuse.
"""

from math import prod

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import chosen
from qcompiler.backends.triton.ops.alignment import even
from qcompiler.backends.triton.ops.device import capability
from qcompiler.ir.storage import laid_out
from qcompiler.numerics.groupwise import GROUP, compress, compress_mask, decompress, decompress_mask
from qcompiler.numerics.packing import WIDE
from qcompiler.numerics.philox import Purpose, check_draws

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WORDS = 4  # of one counter, for as many elements


def stored(x: Tensor, key: Tensor, tensor: int, bits: int) -> tuple[Tensor, Tensor]:
    """`ops.qcompiler.store`."""
    if x.dtype not in FLOATS or bits not in WIDE:
        return compress(x, bits, None)
    check_draws(x.numel(), key, tensor, Purpose.SAVED_ACTIVATION)
    flat, groups = in_row(x.detach()), groups_of(x.numel())
    packed = x.new_empty(groups * GROUP * bits // 8, dtype=torch.uint8)
    bounds = x.new_empty((groups, 2), dtype=torch.bfloat16)
    if groups:
        from qcompiler.backends.triton.kernels.storage import launch_store

        row = chosen("store", capability(x.device))
        purpose, size = Purpose.SAVED_ACTIVATION, row.constants["GROUPS"]
        with torch.cuda.device(x.device):
            launch_store(flat, in_row(key), packed, bounds, tensor, purpose, bits, size, row.options)
    return packed, bounds


def recalled(
    packed: Tensor, bounds: Tensor, bits: int, shape: list[int], stride: list[int], dtype: torch.dtype
) -> Tensor:
    """`ops.qcompiler.recall`."""
    count, groups = prod(shape), groups_of(prod(shape))
    if bits not in WIDE or packed.shape != (groups * GROUP * bits // 8,) or bounds.shape != (groups, 2):
        return decompress(packed, bounds, bits, count)
    x = packed.new_empty(count, dtype=dtype if dtype in FLOATS else torch.float32)
    if count:
        from qcompiler.backends.triton.kernels.storage import launch_recall

        row = chosen("recall", capability(packed.device))
        with torch.cuda.device(packed.device):
            launch_recall(
                in_row(packed), even(bounds.contiguous()), x, bits, row.constants["GROUPS"], row.options
            )
    return laid_out(x.to(dtype), shape, stride)


def masked(x: Tensor) -> Tensor:
    """`ops.qcompiler.store_mask`."""
    if x.dtype.is_complex:
        return compress_mask(x)
    flat = in_row(x.detach())
    packed = x.new_empty(-(-x.numel() // 8), dtype=torch.uint8)
    if len(packed):
        from qcompiler.backends.triton.kernels.masks import launch_store

        row = chosen("store_mask", capability(x.device))
        with torch.cuda.device(x.device):
            launch_store(flat, packed, row.constants["BYTES"], row.options)
    return packed


def unmasked(packed: Tensor, shape: list[int], stride: list[int], dtype: torch.dtype) -> Tensor:
    """`ops.qcompiler.recall_mask`."""
    count = prod(shape)
    if dtype.is_complex or packed.shape != (-(-count // 8),):
        return laid_out(decompress_mask(packed, count).to(dtype), shape, stride)
    x = packed.new_empty(count, dtype=dtype)
    if count:
        from qcompiler.backends.triton.kernels.masks import launch_recall

        row = chosen("recall_mask", capability(packed.device))
        with torch.cuda.device(packed.device):
            launch_recall(in_row(packed), x, row.constants["BYTES"], row.options)
    return laid_out(x, shape, stride)


def drawn(key: Tensor, count: int, tensor: int, purpose: int, offset: int = 0) -> Tensor:
    """`ops.qcompiler.draws`."""
    check_draws(count, key, tensor, purpose, offset)
    row = chosen("draws", capability(key.device))
    before, block = offset % WORDS, row.constants["BLOCK"]
    values = key.new_empty(-(-(before + count) // block) * block, dtype=torch.float32)
    if count:
        from qcompiler.backends.triton.kernels.draws import launch

        with torch.cuda.device(key.device):
            launch(in_row(key), values, tensor, purpose, offset // WORDS, block, row.options)
    return values[before : before + count]


def groups_of(count: int) -> int:
    return -(-count // GROUP)


def in_row(x: Tensor) -> Tensor:
    """The elements in row-major order, side by side, from a whole load on."""
    return even(x.reshape(-1).contiguous())
