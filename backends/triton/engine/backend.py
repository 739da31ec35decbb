"""The backend named "triton": linears on codes of 8 bits for NVIDIA GPUs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompiler.backends.triton.decisions import Table
from qcompiler.backends.triton.engine.executable import TritonExecutable
from qcompiler.backends.triton.engine.layers import layers_of
from qcompiler.errors import TargetError
from qcompiler.ir import Graph
from qcompiler.target import Target, find_target


class Triton:
    """The graph is all it needs; it runs on the device of its inputs, and wants no GPU to be made."""

    name = "triton"

    def __init__(self, target: Target | str = "cuda", *, table: Table | None = None) -> None:
        """`table` has what was measured of each problem; elsewhere defaults decide."""
        self.target = find_target(target)
        if self.target.range_of != "row":
            raise TargetError(
                f"backend 'triton' cannot run what is planned for target '{self.target.name}'",
                why="its kernels multiply codes with a scale for each row", fix="use target='cuda'",
            )  # fmt: skip
        self.table: Table = table or {}

    def lower(self, graph: Graph, *, threads: int | None = None) -> TritonExecutable:
        return TritonExecutable(
            graph=graph, target=self.target, layers=layers_of(graph, self.target), table=self.table
        )

    def write(self, graph: Graph, folder: Path) -> None:
        """Nothing: the graph says it all, and weights are packed when it is lowered."""

    def open(self, graph: Graph, folder: Path, *, threads: int | None = None) -> TritonExecutable:
        return self.lower(graph, threads=threads)

    def settings(self, graph: Graph, *, threads: int | None = None) -> Mapping[str, Any]:
        """Decisions as text, by problem."""
        problems = {layer.problem for layer in layers_of(graph, self.target).found}
        found = {problem: self.table[problem] for problem in problems if problem in self.table}
        return {
            "decisions": {
                f"{problem.format} {problem.N}x{problem.K}": str(decisions)
                for problem, decisions in sorted(found.items(), key=lambda item: str(item[0]))
            }
        }
