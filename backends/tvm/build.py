"""Functions of our kernels compiled to machine code, and run on numpy arrays in place."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm.support import cc

from qcompiler.backends.tvm.isa import Isa, Processor, isa_for
from qcompiler.errors import TargetError
from qcompiler.target.machine import this_cpu

# What LLVM may use of a processor for arithmetic, where Linux calls it otherwise; the rest is for the system,
# or says what is fast.
LINUX = {
    "avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "avx512bf16": "avx512_bf16",
    "avx512vbmi2": "avx512_vbmi2", "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq",
    "bmi": "bmi1", "lzcnt": "abm", "sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2",
    "avx512fp16": "avx512_fp16", "dotprod": "asimddp", "neon": "asimd", "lse": "atomics", "rdm": "asimdrdm",
}  # fmt: skip
ARITHMETIC = {
    "sse", "sse2", "ssse3", "avx", "avx2", "fma", "f16c", "bmi2", "movbe", "popcnt", "gfni", "vaes",
    "vpclmulqdq", "adx", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512ifma",
    "avx512vbmi", "i8mm", "sve", "sve2", *LINUX.values(),
}  # fmt: skip
ALIGNMENT = 64  # bytes; a vector load may want it
# What TVM raises where it cannot schedule or compile: errors of its own are of the first kind, those of an
# argument of the second.
REFUSALS = (RuntimeError, ValueError)


def compiled(functions: Sequence[Any], processor: Processor) -> Any:
    """One module with every function by its name."""
    return assembled({str(function.attrs["global_symbol"]): function for function in functions}, processor)


def assembled(functions: Mapping[Any, Any], processor: Processor) -> Any:
    """The same of functions by their names, or by the GlobalVar by which they call each other."""
    return tvm.compile(tvm.IRModule(functions), target_of(processor))


def target_of(processor: Processor) -> Any:
    named = {"mtriple": processor.triple} if processor.triple else {}
    attributes = [f"+{name}" for name in processor.attributes]
    return tvm.target.Target(
        {"kind": "llvm", "mcpu": processor.name, "mattr": attributes, "num-cores": 1, **named}
    )


def linked(module: Any, library: Path) -> None:
    """A module as a shared library; raises TargetError without a compiler, which links it."""
    try:
        if cc.get_cc() is None:  # TVM would call None
            raise OSError("there is no compiler in PATH")
        module.export_library(str(library))
    except (RuntimeError, OSError, ValueError) as error:
        said = [line for line in str(error).splitlines() if line.strip()]
        raise TargetError(
            "cannot link kernels to a shared library", why=" ".join(said[:2]),
            fix="install a C++ compiler here; where the library runs, none is needed",
        ) from error  # fmt: skip


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


def host() -> Processor:
    """The processor that this process runs on."""
    return Processor(name=str(tvm.target.codegen.llvm_get_system_cpu()))


def processor_for(isa: Isa) -> Processor:
    """This machine's, tuned to its pipelines; the least that a set wants where that is not its best.

    LLVM uses whatever a processor has, so another choice would compile a set to instructions beyond it. It
    knows a processor by its name, whatever a virtual machine masks of it: there, the least is taken as well.
    """
    cpu = this_cpu()
    return safest(host(), isa, cpu.flags) if isa == isa_for(cpu.features) else isa.processor


def safest(processor: Processor, isa: Isa, flags: Collection[str]) -> Processor:
    """A processor if all that it is taken for is there, in the spelling of Linux; else the least of a set."""
    return processor if uses(processor) <= set(flags) else isa.processor


def uses(processor: Processor) -> set[str]:
    """What a CPU must have to run code for a processor, as Linux calls it."""
    return processor_features(processor) & ARITHMETIC


def processor_features(processor: Processor) -> set[str]:
    """What LLVM says a processor has, in the spelling of the operating system where the two differ."""
    return spelled(map(str, tvm.target.codegen.llvm_get_cpu_features(target_of(processor))))


def spelled(features: Iterable[str]) -> set[str]:
    return {LINUX.get(name, name) for name in features}


def refusal(error: BaseException) -> str:
    """What TVM raised, as the reason in an error of ours: the first line says it."""
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}"[:200]
