"""The backend named "triton": linears on codes of 8 bits for NVIDIA GPUs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qcompiler.backends.triton.decisions import Table
from qcompiler.backends.triton.engine.executable import TritonExecutable
from qcompiler.backends.triton.engine.layer import Layers
from qcompiler.backends.triton.engine.layers import layers_of
from qcompiler.backends.triton.engine.readings import readings_of
from qcompiler.backends.triton.ops.schedule import of_device
from qcompiler.backends.triton.tuning.decided import table as decided
from qcompiler.errors import TargetError
from qcompiler.ir import Graph
from qcompiler.target import Target, find_target


class Triton:
    """The graph is all it needs; it runs on the device of its inputs, and wants no GPU to be made."""

    name = "triton"

    def __init__(
        self, target: Target | str = "cuda", *, table: Table | None = None, database: Path | None = None
    ) -> None:
        """`table` has the decisions for each problem, and defaults decide elsewhere.

        Without a table they follow from what was measured on the GPU that is here. `database` holds that, and
        which configuration a kernel runs with; that of `default_path` if None.
        """
        self.target = find_target(target)
        if self.target.range_of != "row":
            raise TargetError(
                f"backend 'triton' cannot run what is planned for target '{self.target.name}'",
                why="its kernels multiply codes with a scale for each row", fix="use target='cuda'",
            )  # fmt: skip
        self.table, self.database = table, database

    def lower(self, graph: Graph, *, threads: int | None = None) -> TritonExecutable:
        layers = layers_of(graph, self.target)
        table = measured(layers, self.database) if self.table is None else self.table
        return TritonExecutable(
            graph=graph, target=self.target, layers=layers, table=table, database=self.database
        )

    def write(self, graph: Graph, folder: Path) -> None:
        """Nothing: the graph says it all, and weights are packed when it is lowered."""

    def open(self, graph: Graph, folder: Path, *, threads: int | None = None) -> TritonExecutable:
        return self.lower(graph, threads=threads)

    def settings(self, graph: Graph, *, threads: int | None = None) -> Mapping[str, Any]:
        """Decisions as text, by problem."""
        layers = layers_of(graph, self.target)
        table = measured(layers, self.database) if self.table is None else self.table
        problems = {layer.problem for layer in layers.found}
        found = {problem: table[problem] for problem in problems if problem in table}
        return {
            "decisions": {
                str(problem): str(decisions)
                for problem, decisions in sorted(found.items(), key=lambda item: str(item[0]))
            }
        }


def measured(layers: Layers, database: Path | None = None) -> Table:
    """Decisions by what was measured on the GPU that is here; none where there is no GPU."""
    if not torch.cuda.is_available():
        return {}
    device = torch.device("cuda", torch.cuda.current_device())
    known = of_device(device, database).schedules
    return decided(readings_of(layers.found), known)
