"""What every backend looks like to the compiler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from qcompiler.ir import Graph
from qcompiler.passes.profit import Fusion
from qcompiler.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Executed:
    """How one planned layer really runs."""

    node: str
    kernel: str  # the engine's own name, "" if the op was merged into another or removed
    precision: str  # "int8", "int4", "float", ...
    reason: str = ""  # why it differs from the plan, with the fix


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What an engine made of a graph.

    stray: quantize and dequantize nodes that touch neither a graph edge nor a planned float op. remarks: what
    one should know of how it runs, in sentences.
    """

    layers: tuple[Executed, ...]
    kernels: Mapping[str, int] = field(default_factory=dict)  # every kernel of the engine's graph, counted
    stray: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeDistance:
    """How far one kernel is from the reference on the same inputs.

    max_lsb: the largest distance in steps of the result; changed: the share of values that differ. Of floats
    for which a kernel states a bound, what is beyond it counts.
    """

    node: str
    kernel: str
    max_lsb: float
    changed: float
    allowed: int = 0


class Executable(Protocol):
    """A lowered graph that runs on flat inputs."""

    @property
    def graph(self) -> Graph: ...

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]: ...

    def execution(self, plan: Plan) -> Execution:
        """Read back, from the engine, which precision each planned layer runs in."""


@runtime_checkable
class Engine(Executable, Protocol):
    """An executable that is meant to be fast, so its kernels are verified, profiled and guarded."""

    def profile(self, inputs: Sequence[Tensor]) -> Mapping[str, float]:
        """Microseconds per run of every node, by planned name; of CPU time where the engine tells it."""

    def verify(self, inputs: Sequence[Tensor]) -> Sequence[NodeDistance]:
        """Every integer kernel against the reference, on the inputs that it was really given.

        Kernels of floats against a bound that they state, where they state one.
        """


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Layers that are quantized or float together: microseconds of both on a device that is not here.

    why: the verdict in words, with its figures.
    """

    nodes: tuple[str, ...]
    labels: tuple[str, ...]
    why: str
    us: float
    float_us: float
    device: str
    kept: bool


@runtime_checkable
class Travelling(Engine, Protocol):
    """An engine for a device that may be absent: it then runs on references, and timing it tells nothing."""

    def at_home(self) -> Engine | None:
        """The same on its device, to be timed there; None where that is absent."""

    def predicted(self, inputs: Sequence[Tensor]) -> Sequence[Prediction]:
        """What is expected of layers on codes for calls of these shapes, where nothing can be timed."""


@runtime_checkable
class Weighing(Protocol):
    """An executable that fuses ops only where that pays."""

    def fusions(self, inputs: Sequence[Tensor]) -> Sequence[Fusion]:
        """Those that were weighed for calls of these shapes, whether taken or refused."""


class Backend(Protocol):
    """Lowers a graph (quantized or float) to something that runs; made with a target."""

    name: str

    def lower(self, graph: Graph, *, threads: int | None = None) -> Executable: ...

    def write(self, graph: Graph, folder: Path) -> None:
        """Put into an artifact what `open` needs besides the graph."""

    def open(self, graph: Graph, folder: Path, *, threads: int | None = None) -> Executable:
        """Open what `write` wrote, leaving the folder as it is."""

    def settings(self, graph: Graph, *, threads: int | None = None) -> Mapping[str, Any]:
        """What the engine is told besides the model; for the manifest."""
