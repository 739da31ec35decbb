"""ONNX Runtime: QDQ models that its optimizer turns into integer kernels."""

import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import Node

from qcompiler.backends.base import Execution, NodeDistance
from qcompiler.backends.ort.contract import read_execution
from qcompiler.backends.ort.failure import failure
from qcompiler.backends.ort.memory import BoundMemory
from qcompiler.backends.ort.prepare import prepare
from qcompiler.backends.ort.profile import profile_nodes
from qcompiler.backends.ort.requirements import check_opset, default_opset, settings_for
from qcompiler.backends.ort.session import Names, Settings, names_of, open_session, run_session
from qcompiler.backends.ort.verify import verify_nodes
from qcompiler.errors import LoweringError
from qcompiler.ir import Graph, value
from qcompiler.plan import Plan
from qcompiler.target import Target, find_target

__all__ = ["Ort", "OrtExecutable", "check_opset", "open_executable", "publish", "write_onnx"]

MODEL = "model.onnx"


@dataclass(frozen=True, kw_only=True)
class OrtExecutable:
    """An open session; `optimized` is the file that the engine wrote of what it runs."""

    graph: Graph
    session: Any
    path: Path
    optimized: Path
    settings: Settings

    @cached_property
    def names(self) -> Names:
        return names_of(self.session)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        try:
            results = iter(run_session(self.session, inputs, self.names))
        except Exception as error:
            raise failure(error) from error
        returned = self.graph.output.args[0]
        return [as_returned(arg, next(results)) if isinstance(arg, Node) else arg for arg in returned]  # type: ignore[union-attr]

    def execution(self, plan: Plan) -> Execution:
        return read_execution(self.optimized, plan)

    def memory(self) -> BoundMemory:
        """An empty cache of one sequence that stays where it is from call to call."""
        return BoundMemory(self.session)

    def profile(self, inputs: Sequence[Tensor]) -> dict[str, float]:
        """Microseconds per run of every node, by planned name; the engine reads a clock on the wall."""
        return profile_nodes(self.path, inputs, self.settings)

    def verify(self, inputs: Sequence[Tensor]) -> list[NodeDistance]:
        """Every integer kernel against the reference, on the inputs that it was really given."""
        return verify_nodes(self.optimized, inputs)


def as_returned(node: Node, found: Tensor) -> Any:
    """ONNX knows tensors only; a size of the input was a number."""
    return found if isinstance(value(node), Tensor) else found.item()


class Ort:
    """The backend named "ort"."""

    name = "ort"

    def __init__(self, target: Target | str = "cpu") -> None:
        self.target = find_target(target)

    def lower(self, graph: Graph, *, threads: int | None = None, folder: Path | None = None) -> OrtExecutable:
        """Export, load and optimize; files go to `folder`, or to one that goes with the executable."""

        def lowered(folder: Path) -> OrtExecutable:
            self.write(graph, folder)
            return open_executable(graph, folder / MODEL, threads=threads)

        return lowered(folder) if folder else in_own_folder(lowered)

    def write(self, graph: Graph, folder: Path) -> None:
        check_opset(graph, None, self.target)
        write_onnx(graph, folder / MODEL, portable=False)

    def open(self, graph: Graph, folder: Path, *, threads: int | None = None) -> OrtExecutable:
        """The engine writes what it optimized to a folder of its own."""
        return in_own_folder(
            lambda own: open_executable(
                graph, folder / MODEL, threads=threads, optimized=own / "optimized.onnx"
            )
        )

    def settings(self, graph: Graph, *, threads: int | None = None) -> dict[str, Any]:
        return asdict(settings_for(graph, threads=threads))


def in_own_folder(make: Callable[[Path], OrtExecutable]) -> OrtExecutable:
    """Make an executable in a temporary folder that is removed together with it, or when making fails."""
    folder = Path(tempfile.mkdtemp(prefix="qcompiler-"))
    try:
        executable = make(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(executable, shutil.rmtree, folder, ignore_errors=True)
    return executable


def write_onnx(graph: Graph, path: Path, *, opset: int | None = None, portable: bool = True) -> None:
    """Write a graph as an ONNX file whose metadata names the level it needs.

    A portable file holds standard operators only; the other has those that ONNX Runtime runs fastest.
    """
    from qcompiler.backends.ort.export import save, to_onnx

    opset = opset or default_opset(graph)
    model = to_onnx(prepare(graph, opset=opset, portable=portable), opset=opset, portable=portable)
    settings = settings_for(graph)
    save(model, path, {"qcompiler.level": settings.level, "qcompiler.disabled": ",".join(settings.disabled)})


def open_executable(
    graph: Graph, path: Path, *, threads: int | None, optimized: Path | None = None
) -> OrtExecutable:
    """Load an ONNX file; raises LoweringError where ONNX Runtime refuses it."""
    settings = settings_for(graph, threads=threads)
    optimized = optimized or path.with_name("optimized.onnx")
    try:
        session = open_session(path, settings, optimized=optimized)
    except Exception as error:
        raise LoweringError(
            "ONNX Runtime refuses the exported model", why=str(error).splitlines()[0][:300],
            fix="report it with the model; `backend='reference'` runs it meanwhile",
        ) from error  # fmt: skip
    return OrtExecutable(graph=graph, session=session, path=path, optimized=optimized, settings=settings)


def publish(draft: Path, path: Path) -> None:
    """Move a finished model, and its data file if it has one, to where it was asked for."""
    for suffix in (".data", ""):
        source = Path(f"{draft}{suffix}")
        if source.exists():
            # Beside its target, since a file can only be renamed within one file system.
            hidden = path.with_name(f".{path.name}{suffix}-{secrets.token_hex(4)}")
            try:
                shutil.copyfile(source, hidden)
                hidden.replace(f"{path}{suffix}")
            except OSError as error:
                raise LoweringError(
                    f"cannot write to '{path}'", why=str(error), fix="choose a folder you may write"
                ) from error
            finally:
                hidden.unlink(missing_ok=True)
