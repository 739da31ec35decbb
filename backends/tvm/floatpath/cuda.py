"""Float functions as CUDA C++, without a GPU: what TVM is for there, fusions and odd ops.

group  -->  plain TIR  -->  DLight's schedule for GPUs  -->  source, and a cubin if nvcc is there

Products of matrices that are no small ones are not covered: on a GPU they want tensor cores and a library.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.fx import Node

from qcompiler.backends.tvm.floatpath.build import function, stages
from qcompiler.backends.tvm.floatpath.functions import NATIVE
from qcompiler.backends.tvm.floatpath.group import LONE, Group, Shapes, groups, is_covered, work
from qcompiler.backends.tvm.floatpath.ops import OPS
from qcompiler.errors import LoweringError, TargetError
from qcompiler.ir import Graph, spec
from qcompiler.ir.text import operator_name

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90")
KERNEL = re.compile(r"__global__ void __launch_bounds__\(\d+\) (\w+)\(")
BINDING = re.compile(r'T\.thread_binding\((\d+), thread="(blockIdx|threadIdx)\.([xyz])"\)')
BLOCK, SHARED = 1024, 49152  # threads of a block, and bytes that they share, on all of these


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One kernel, and how many blocks and threads of a block it is started with, by x, y and z."""

    kernel: str
    blocks: tuple[int, int, int]
    threads: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class CudaFunction:
    """One file: its kernels are launched one after the other.

    bytes: of the inputs and outputs, which is the least that a call moves. arguments: inputs, then outputs.
    """

    name: str
    ops: tuple[str, ...]
    nodes: tuple[str, ...]
    arguments: tuple[str, ...]
    launches: tuple[Launch, ...]
    bytes: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Emitted:
    """What was compiled for an architecture, and what was not: node -> why."""

    architecture: str
    functions: tuple[CudaFunction, ...]
    left: Mapping[str, str]


def emitted(graph: Graph, shapes: Shapes, architecture: str = "sm_80") -> Emitted:
    """Every group of a float graph for the shapes of one call."""
    target = target_of(architecture)
    called = [node for node in graph.fx.nodes if node.op == "call_function" and spec(node) is not None]
    events = [(node, node.all_input_nodes) for node in called]
    found, left = [], {node.name: reason for node in called if (reason := obstacle(node, shapes))}
    for i, group in enumerate(groups(events, graph.output.all_input_nodes, shapes)):
        if any(node.name in left for node in group.nodes):
            continue  # a large contraction, which is a group of its own
        try:
            found.append(compiled(group, f"float_{i}", target))
        except LoweringError as error:
            left |= {node.name: str(error) for node in group.nodes}
    return Emitted(architecture=architecture, functions=tuple(found), left=left)


def target_of(architecture: str) -> Any:
    import tvm

    if architecture not in ARCHITECTURES:
        raise TargetError(
            f"there is no CUDA for '{architecture}' here", fix=f"choose one of {', '.join(ARCHITECTURES)}"
        )
    limits = {"max_threads_per_block": BLOCK, "max_shared_memory_per_block": SHARED, "thread_warp_size": 32}
    return tvm.target.Target({"kind": "cuda", "arch": architecture, **limits}, host={"kind": "llvm"})


def obstacle(node: Node, shapes: Shapes) -> str:
    """Why a node has no function; "" if it may have one."""
    if node.target not in OPS:
        return f"{operator_name(node.target)} is not in the table of float ops"
    if not is_covered(node, shapes):
        return "its numbers are not float32 of known shapes, or the table does not take its arguments"
    if work(node, shapes) >= LONE:
        return "it is a large product of matrices, which is for a library"
    return ""


def compiled(group: Group, name: str, target: Any) -> CudaFunction:
    """Raises LoweringError where DLight has no schedule or TVM no code."""
    from tvm.s_tir.dlight import gpu

    arguments, _ = stages(group, NATIVE, lanes=1)
    plain = function(arguments, name)
    special = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction())
    try:
        source, launches = source_of(plain, name, target, (*special, gpu.Fallback()))
    except Exception:  # a rule that takes a function may still fail on it; the last one takes nearly all
        try:
            source, launches = source_of(plain, name, target, (gpu.Fallback(),))
        except Exception as error:  # TVM's refusals have no class of their own
            raise LoweringError(
                f"{', '.join(node.name for node in group.nodes)} cannot be compiled for CUDA",
                why=f"DLight has no schedule for it ({type(error).__name__})", fix="leave it to torch",
            ) from error  # fmt: skip
    return CudaFunction(
        name=name, ops=tuple(operator_name(node.target) for node in group.nodes),
        nodes=tuple(node.name for node in group.nodes),
        arguments=tuple(f"{node.name}: {group.kind(node)}" for node in (*group.inputs, *group.outputs)),
        launches=launches, bytes=group.bytes((*group.inputs, *group.outputs)), source=source,
    )  # fmt: skip


def source_of(plain: Any, name: str, target: Any, rules: Sequence[Any]) -> tuple[str, tuple[Launch, ...]]:
    """CUDA C++ of a function under the first rule that takes it, and its launches in order."""
    import tvm
    from tvm.s_tir import dlight

    with target:
        module = dlight.ApplyDefaultSchedule(*rules)(tvm.IRModule({name: plain}))
    library = tvm.compile(module, target)
    source = "\n".join(
        str(each.inspect_source("cuda")) for each in library.mod.imports if each.kind == "cuda"
    )
    kernels = dict.fromkeys(KERNEL.findall(source))  # each is declared and defined
    return source, tuple(
        Launch(kernel=kernel, blocks=blocks, threads=threads)
        for kernel, (blocks, threads) in zip(kernels, sizes(module.script()), strict=True)
    )


Sizes = tuple[int, int, int]


def sizes(script: str) -> list[tuple[Sizes, Sizes]]:
    """Blocks and threads of every kernel; loops bound to blocks stand around those bound to threads."""
    found: list[dict[str, dict[str, int]]] = []
    last = "threadIdx"
    for extent, kind, axis in BINDING.findall(script):
        if kind == "blockIdx" and last == "threadIdx":
            found.append({"blockIdx": {}, "threadIdx": {}})
        found[-1][kind][axis] = int(extent)
        last = kind

    def by_axis(known: dict[str, int]) -> Sizes:
        return known.get("x", 1), known.get("y", 1), known.get("z", 1)

    return [(by_axis(each["blockIdx"]), by_axis(each["threadIdx"])) for each in found]


def write(found: Emitted, folder: Path) -> list[Path]:
    """The sources, a cubin beside each if nvcc is there, and `manifest.json`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for each in found.functions:
        source = folder / f"{each.name}.cu"
        source.write_text(each.source, encoding="utf-8")
        files += [source, *assembled(source, found.architecture)]
    table = [
        {key: value for key, value in asdict(each).items() if key != "source"} | {"file": f"{each.name}.cu"}
        for each in found.functions
    ]
    manifest = folder / "manifest.json"
    told = {"architecture": found.architecture, "functions": table, "not_covered": dict(found.left)}
    manifest.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return [*files, manifest]


def assembled(source: Path, architecture: str) -> Sequence[Path]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return []
    cubin = source.with_suffix(".cubin")
    done = subprocess.run(
        [nvcc, "-cubin", f"-arch={architecture}", "-o", str(cubin), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise LoweringError(f"nvcc refuses '{source.name}'", why=done.stderr.strip()[-300:])
    return [cubin]


__all__ = ["ARCHITECTURES", "CudaFunction", "Emitted", "emitted", "write"]
