"""What must hold before the first kernel runs: traps that end a process or give wrong numbers, silently.

Each test returns what it found, or raises an EngineError. The backend runs them once per process and
instruction set (0.1 s, which LLVM needs for one function); `qcompiler doctor` shows them.
"""

import importlib.metadata
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from packaging.requirements import Requirement

from qcompiler.backends.tvm.build import ALIGNMENT, compiled, handed, placed, processor_for
from qcompiler.backends.tvm.builder import Builder
from qcompiler.backends.tvm.isa import Isa
from qcompiler.errors import EngineError

# As in pyproject.toml, and for the same reason: pip installs another one all the same, if asked to.
FFI = Requirement("apache-tvm-ffi<0.1.15,>=0.1.14.post0")
HERE = "the self-test of backend 'tvm'"
INSTEAD = "or use backend='ort'"


@cache
def check(isa: Isa) -> None:
    """Raise the first fault."""
    for test in SELF_TESTS.values():
        test(isa)


def versions(isa: Isa) -> str:
    """By what is installed and without trying it: the fault is a segmentation fault."""
    version = importlib.metadata.version(FFI.name)
    if not FFI.specifier.contains(version, prereleases=True):
        raise EngineError(
            f"{FFI.name} {version} will not do", node=HERE,
            why="with 0.1.15 Schedule.tensorize and save_json end the process with a segmentation fault",
            fix=f"pip install '{FFI}', {INSTEAD}",
        )  # fmt: skip
    return f"{FFI.name} {version}"


def instructions(isa: Isa) -> str:
    """Every instruction that a set is made of compiles in this LLVM, and computes what its docstring says."""
    codes, weights = np.full(64, 255, np.uint8), np.arange(-128, -64).astype(np.int8)
    steps = np.resize(np.array([0.5, 1.5, -0.5, 254.5, 255.5, 300, -300, np.nan], np.float32), isa.lanes)
    sums, bytes_ = placed(np.full(isa.lanes, 7, np.int32)), placed(np.zeros(isa.bytes, np.uint8))
    try:
        function = compiled([probe(isa)], processor_for(isa))["probe"]
    except Exception as error:  # LLVM's refusals have no class of their own
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise EngineError(
            f"the instructions of '{isa.name}' do not compile", node=HERE, why=": ".join(lines[:2]),
            fix=f"pip install 'apache-tvm==0.27.0.post1', which they were written for, {INSTEAD}",
        ) from error  # fmt: skip
    given: list[NDArray[Any]] = [codes, weights, steps]
    function(*map(handed, [*map(placed, given), sums, bytes_]))
    products = codes[: isa.bytes].astype(np.int32) * weights[: isa.bytes]
    wanted_sums = 7 + products.reshape(isa.lanes, isa.unit).sum(1)
    wanted_codes = np.where(np.isnan(steps), 0, np.rint(steps)).clip(0, 255)
    for name, found, wanted in (
        ("dot", sums, wanted_sums),
        ("nearest and narrow", bytes_[list(isa.order)], np.tile(wanted_codes, 4)),
    ):
        if not np.array_equal(found, wanted):
            raise EngineError(
                f"the instructions of '{isa.name}' compute wrong numbers", node=HERE,
                why=f"'{name}' gave {found[:4].tolist()} .. for {wanted[:4].tolist()} ..",
                fix=f"report it with the CPU and the version of apache-tvm, {INSTEAD}",
            )  # fmt: skip
    return f"{isa.name}, compiled for {processor_for(isa).name}"


def probe(isa: Isa) -> Any:
    """The function (codes, weights, steps, sums, bytes)."""
    k = Builder("probe")
    codes, weights = k.argument("codes", "uint8", 64), k.argument("weights", "int8", 64)
    steps = k.argument("steps", "float32", isa.lanes)
    sums, result = k.argument("sums", "int32", isa.lanes), k.argument("result", "uint8", isa.bytes)
    total = isa.dot(k.load(sums, 0, isa.lanes), isa.spread(codes, 0), isa.panel(weights, 0))
    k.store(sums, 0, total, isa.lanes)
    rounded = k.keep(isa.nearest(k.load(steps, 0, isa.lanes)), "int32", isa.lanes)
    k.store(result, 0, isa.narrow([rounded] * 4), isa.bytes)
    return k.function()


def memory(isa: Isa) -> str:
    """LLVM loads vectors as lying on cache lines: what does not is a segmentation fault, so it is refused."""
    begins = [placed(np.zeros(5, np.uint8)).ctypes.data, torch.empty(5, dtype=torch.uint8).data_ptr()]
    if any(begin % ALIGNMENT for begin in begins):
        raise EngineError(
            "memory for kernels does not begin on a cache line", node=HERE,
            why=f"its addresses are {' and '.join(f'{begin:#x}' for begin in begins)}",
            fix=f"report it with the versions of numpy and torch, {INSTEAD}",
        )  # fmt: skip
    room = placed(np.zeros(2 * ALIGNMENT, np.uint8))
    try:
        handed(room[4 : 4 + ALIGNMENT])
    except RuntimeError:
        return f"aligned to {ALIGNMENT} bytes"
    raise EngineError(
        "an array that does not begin on a cache line is handed to kernels", node=HERE,
        why="this version of apache-tvm-ffi does not refuse it", fix=f"pip install '{FFI}', {INSTEAD}",
    )  # fmt: skip


SELF_TESTS: Mapping[str, Callable[[Isa], str]] = {
    "versions": versions,
    "instructions": instructions,
    "memory": memory,
}
