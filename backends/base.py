"""What every backend looks like to the compiler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from qcompiler.ir import Graph
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

    stray: quantize and dequantize nodes that touch neither a graph edge nor a planned float op.
    """

    layers: tuple[Executed, ...]
    kernels: Mapping[str, int] = field(default_factory=dict)  # every kernel of the engine's graph, counted
    stray: tuple[str, ...] = ()


class Executable(Protocol):
    """A lowered graph that runs on flat inputs."""

    @property
    def graph(self) -> Graph: ...

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]: ...

    def execution(self, plan: Plan) -> Execution:
        """Read back, from the engine, which precision each planned layer runs in."""


class Backend(Protocol):
    """Lowers a graph (quantized or float) to something that runs."""

    name: str

    def lower(
        self, graph: Graph, *, threads: int | None = None, folder: Path | None = None
    ) -> Executable: ...
