"""ONNX Runtime: QDQ models that its optimizer turns into integer kernels."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qcompiler.backends.base import Execution
from qcompiler.backends.ort.contract import read_execution
from qcompiler.backends.ort.prepare import prepare
from qcompiler.backends.ort.session import open_session, run_session
from qcompiler.errors import LoweringError
from qcompiler.ir import Graph, arguments
from qcompiler.plan import Plan

DEFAULT_OPSET = 21


@dataclass(frozen=True, kw_only=True)
class OrtExecutable:
    """An open session; `optimized` is the file that the engine wrote of what it runs."""

    graph: Graph
    session: Any
    path: Path
    optimized: Path
    threads: int | None
    level: str

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        results = iter(run_session(self.session, inputs))
        returned = self.graph.output.args[0]
        return [next(results) if hasattr(arg, "op") else arg for arg in returned]  # type: ignore[union-attr]

    def execution(self, plan: Plan) -> Execution:
        return read_execution(self.optimized, plan)


class Ort:
    """The backend named "ort"."""

    name = "ort"

    def lower(self, graph: Graph, *, threads: int | None = None, folder: Path | None = None) -> OrtExecutable:
        """Export, load and optimize; files go to `folder` (default: a new temporary one)."""
        folder = folder or Path(tempfile.mkdtemp(prefix="qcompiler-"))
        path = folder / "model.onnx"
        write_onnx(graph, path)
        return open_executable(graph, path, threads=threads)


def write_onnx(graph: Graph, path: Path, *, opset: int | None = None) -> None:
    """Write a graph as an ONNX file whose metadata names the level it needs."""
    from qcompiler.backends.ort.export import save, to_onnx

    model = to_onnx(prepare(graph), opset=opset or required_opset(graph))
    save(model, path, {"qcompiler.level": level_for(graph)})


def open_executable(graph: Graph, path: Path, *, threads: int | None) -> OrtExecutable:
    level = level_for(graph)
    optimized = path.with_name("optimized.onnx")
    try:
        session = open_session(path, threads=threads, level=level, optimized=optimized)
    except Exception as error:
        raise LoweringError(
            "ONNX Runtime refuses the exported model", why=str(error).splitlines()[0][:300],
            fix="report it with the model; `backend='reference'` runs it meanwhile",
        ) from error  # fmt: skip
    return OrtExecutable(
        graph=graph, session=session, path=path, optimized=optimized, threads=threads, level=level
    )


def formats(graph: Graph) -> set[str]:
    """The formats that a graph's dequantize nodes read."""
    return {str(arguments(node)["format"]) for node in graph.fx.nodes if "dequantize" in str(node.target)}


def level_for(graph: Graph) -> str:
    """FP8 loads at the basic level only: above it, fusions pick kernels that reject the type."""
    return "basic" if any(name.startswith("float8") for name in formats(graph)) else "all"


def required_opset(graph: Graph) -> int:
    return DEFAULT_OPSET
