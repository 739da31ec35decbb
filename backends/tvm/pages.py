"""All constants of a program in one block of memory, in pages of 2 MiB where the system gives them.

What is read once per call, such as the weights of a decoder, is read as fast as addresses are translated; how
much that is depends on the machine (benchmarks/results/gemv.md).
"""

import contextlib
import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.tvm.build import ALIGNMENT

PAGE = 2 << 20


def arranged(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Flat copies under the same names, each on a cache line of its own, side by side."""
    block = reserved(sum(room(array.nbytes) for array in arrays.values()))
    found, start = {}, 0
    for name, array in arrays.items():
        found[name] = block[start : start + array.nbytes].view(array.dtype)
        found[name][:] = array.reshape(-1)
        start += room(array.nbytes)
    return found


def room(size: int) -> int:
    """Bytes in whole cache lines."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def reserved(size: int) -> NDArray[np.uint8]:
    """Zeros that begin on a page. The block lives as long as an array looks into it.

    Large pages are a wish: where there are none, or less than one would be used, this is ordinary memory.
    """
    memory = mmap.mmap(-1, size + PAGE)
    if size >= PAGE and hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    block = np.frombuffer(memory, np.uint8)
    start = -block.ctypes.data % PAGE
    return block[start : start + size]
