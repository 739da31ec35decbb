"""A compiled model as a folder that runs without us: machine code, constants, and a small loader.

model-*.so       all calls of the program as one function, for every CPU that has the instruction set
constants.bin    weights and tables, each on a cache line of its own, so that the file can be mapped
manifest.json    inputs, outputs, memory and steps as data; what the CPU must have; SHA-256 of the files
run.py           the loader, which needs numpy and apache-tvm-ffi (`run` here)

One program, so one shape of every input; other shapes are other libraries. The file of code is named by its
contents: of two files with one name the system has only the first in a process, even if it was replaced.
"""

import importlib.metadata
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from qcompiler import artifact
from qcompiler.backends.shapes import shapes_of
from qcompiler.backends.tvm.arena import shared, sizes
from qcompiler.backends.tvm.build import linked, uses
from qcompiler.backends.tvm.driver import counters
from qcompiler.backends.tvm.executable import TvmExecutable
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.library import run
from qcompiler.backends.tvm.library.steps import portable_steps, recorded
from qcompiler.backends.tvm.lower import lower
from qcompiler.backends.tvm.pages import room
from qcompiler.backends.tvm.program import Program, tensors
from qcompiler.backends.tvm.ready import kernels
from qcompiler.errors import ContractError, LoweringError
from qcompiler.ir import Graph

LOADER = "run.py"
VERSIONED = ("qcompiler", "apache-tvm", "apache-tvm-ffi", "numpy")
THREADS = 1


@dataclass(frozen=True, kw_only=True)
class Library:
    """What was written: bytes of each file, and what the CPU must have."""

    folder: Path
    files: Mapping[str, int]
    features: tuple[str, ...]


def write_library(executable: TvmExecutable, inputs: Sequence[Tensor], folder: Path) -> Library:
    """Everything or nothing, and only if it computes what the executable does, to the last bit.

    Raises LoweringError where a step needs torch, TargetError without a compiler to link, ContractError where
    the library computes other numbers.
    """
    graph, isa = executable.graph, executable.isa
    program = lower(graph, executable.target, shapes_of(graph, inputs), isa, executable.choose)
    steps = portable_steps(program, graph)
    outputs = executable(inputs)
    with artifact.written_atomically(folder) as draft:
        made = kernels(program, isa, THREADS, isa.processor)
        code = library_of(made.module, draft)
        done = recorded(steps, program, made.places)
        described = written(program.constants, host_tensors(graph, done), draft / run.CONSTANTS)
        shutil.copyfile(run.__file__, draft / LOADER)
        manifest = {
            "format": run.FORMAT, "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
            "system": platform.system(), "machine": platform.machine(), "isa": isa.name,
            "features": sorted(wanted(isa)), "threads": THREADS, "code": code,
            "inputs": [port(node, x) for node, x in zip(graph.inputs, inputs, strict=True)],
            "outputs": [port(node, x) for node, x in zip(returned(graph), outputs, strict=True)],
            **memory(program), **described, "table": list(made.places), "steps": done,
            "meeting": counters(THREADS), "workspace": made.workspace,
            "files": {name: signed(draft / name) for name in (code, run.CONSTANTS, LOADER)},
        }  # fmt: skip
        sealed = {**manifest, "sha256": run.digest(run.canonical(manifest))}
        artifact.write_json(draft / run.MANIFEST, sealed)
        compare(draft, inputs, outputs)
        found = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
    return Library(folder=folder, files=found, features=tuple(manifest["features"]))


def library_of(module: Any, folder: Path) -> str:
    """The name of its file."""
    draft = folder / "model.so"
    linked(module, draft)
    return draft.rename(folder / f"model-{artifact.digest(draft)[:12]}.so").name


def returned(graph: Graph) -> list[Node]:
    found: Any = graph.output.args[0]
    if not all(isinstance(node, Node) for node in found):
        raise LoweringError(
            "a result of this model is no tensor", node="output", why="a library returns arrays",
            fix="return tensors only",
        )  # fmt: skip
    return list(found)


def port(node: Node, held: Tensor) -> dict[str, Any]:
    """An input or an output."""
    return {"name": node.name, "shape": list(held.shape), "dtype": array_of(held).dtype.name}


def memory(program: Program) -> dict[str, Any]:
    """Stores in one arena, each where its room begins."""
    rooms, offsets, end = shared(program), {}, 0
    for name, size in sizes(program, rooms).items():
        offsets[name] = end
        end += room(size)
    stores = {
        name: {
            "offset": offsets[rooms[name]], "count": store.plane.size, "dtype": store.dtype,
            "fill": store.fill,
        }
        for name, store in program.stores.items()
    }  # fmt: skip
    return {"arena": end, "stores": stores}


def host_tensors(graph: Graph, steps: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """The constants that steps read, and those that are returned."""
    read = {name for step in steps for name in values_of(step)} | {node.name for node in returned(graph)}
    return {node.name: array_of(held) for node, held in tensors(graph).items() if node.name in read}


def values_of(step: Mapping[str, Any]) -> list[str]:
    """The values that a step may read."""
    return [*step.get("of", ()), *(step[key] for key in ("value", "indices", "table") if key in step)]


def array_of(held: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = held.detach().contiguous().numpy()
    return found


def written(
    constants: Mapping[str, NDArray[Any]], tensors: Mapping[str, NDArray[Any]], path: Path
) -> dict[str, Any]:
    """One file of arrays, side by side; where each of them lies."""
    found: dict[str, dict[str, Any]] = {"constants": {}, "tensors": {}}
    with path.open("wb") as file:
        for kind, arrays in (("constants", constants), ("tensors", tensors)):
            for name, array in arrays.items():
                found[kind][name] = {
                    "offset": file.tell(), "count": array.size, "dtype": array.dtype.name,
                    "shape": list(array.shape),
                }  # fmt: skip
                file.write(array.tobytes())
                file.write(bytes(room(array.nbytes) - array.nbytes))
    return found


def signed(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": artifact.digest(path)}


def wanted(isa: Isa) -> set[str]:
    """What the CPU must have, as Linux calls it."""
    return set(isa.features) | uses(isa.processor)


def compare(folder: Path, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """What the loader computes of a folder, with what was promised."""
    found = run.Model(folder)(*map(array_of, inputs))
    far = [
        port["name"]
        for port, x, y in zip(run.read(folder)["outputs"], found, outputs, strict=True)
        if x.tobytes() != array_of(y).tobytes()
    ]
    if far:
        raise ContractError(
            "the exported library computes other numbers than the compiled model", node=", ".join(far),
            fix="nothing was written; report it with the model",
        )  # fmt: skip
