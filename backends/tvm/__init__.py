"""Kernels of our own, generated as TVM's TIR and compiled by LLVM: integers at the speed of the machine.

builder     statements, loops, registers            isa      vector instructions as data
plane       where activations lie                   tiles    the schedule without measurement
schedules   the schedule that measured best         measure  how long a schedule takes
kernels/    one file per family of layers           build    functions to machine code
lower       a quantized graph as a program          program  its memory and its steps
executable  programs that run, profiled and verified
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompiler.backends.base import Executable
from qcompiler.backends.ort import Ort
from qcompiler.backends.tvm.build import host
from qcompiler.backends.tvm.executable import TvmExecutable
from qcompiler.backends.tvm.isa import ISAS, isa_for
from qcompiler.backends.tvm.schedules import read_schedules
from qcompiler.errors import TargetError
from qcompiler.ir import Graph
from qcompiler.passes.partition import partition
from qcompiler.target import Target, find_target
from qcompiler.target.machine import this_cpu
from qcompiler.tune.database import default_path

__all__ = ["Tvm", "TvmExecutable"]


class Tvm:
    """The backend named "tvm". A graph without integer kernels is left to ONNX Runtime."""

    name = "tvm"

    def __init__(self, target: Target | str = "cpu-tvm", *, database: Path | None = None) -> None:
        """`database` holds measured schedules; that of the user's cache folder if None."""
        self.target = find_target(target)
        found = isa_for(this_cpu().features)
        if found is None:
            raise TargetError(
                "the kernels of backend 'tvm' cannot run here",
                why=f"they want a CPU with {' and '.join(ISAS[-1].features)}", fix="use backend='ort'",
            )  # fmt: skip
        self.isa = found
        self.schedules = read_schedules(found, host(), database or default_path())

    def lower(self, graph: Graph, *, threads: int | None = None) -> Executable:
        if not partition(graph, self.target):
            return Ort("cpu").lower(graph, threads=threads)
        return TvmExecutable(graph=graph, target=self.target, isa=self.isa, choose=self.schedules)

    def write(self, graph: Graph, folder: Path) -> None:
        """Nothing: the graph is all that the kernels are made of."""

    def open(self, graph: Graph, folder: Path, *, threads: int | None = None) -> Executable:
        return self.lower(graph, threads=threads)

    def settings(self, graph: Graph, *, threads: int | None = None) -> Mapping[str, Any]:
        return {"threads": 1, "isa": self.isa.name}
