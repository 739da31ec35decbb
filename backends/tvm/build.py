"""Functions of our kernels compiled to machine code, and run on numpy arrays in place."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

SPELLED = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni"}
ALIGNMENT = 64  # bytes; a vector load may want it


def compiled(functions: Sequence[Any], processor: str) -> Any:
    """One module with every function by its name, for a processor as LLVM calls it ("znver4")."""
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor, "num-cores": 1})
    module = tvm.IRModule({str(function.attrs["global_symbol"]): function for function in functions})
    return tvm.compile(module, target)


def placed(array: NDArray[Any]) -> NDArray[Any]:
    """A flat copy that begins on a cache line."""
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype)
    copy[:] = array.reshape(-1)
    return copy


def handed(array: NDArray[Any]) -> Any:
    """An array of `placed` as a function takes it, without a copy."""
    return tvm.runtime.from_dlpack(array)


def host() -> str:
    """The processor that this process runs on, as LLVM calls it."""
    return str(tvm.target.codegen.llvm_get_system_cpu())


def processor_features(processor: str) -> set[str]:
    """What LLVM says a processor has, in the spelling of the operating system where the two differ."""
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor})
    return {SPELLED.get(str(name), str(name)) for name in tvm.target.codegen.llvm_get_cpu_features(target)}
