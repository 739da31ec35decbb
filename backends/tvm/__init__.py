"""Kernels of our own, generated as TVM's TIR and compiled by LLVM: integers at the speed of the machine.

builder     statements, loops, registers            isa      vector instructions as data
plane       where activations lie                   tiles    the schedule without measurement
schedules   the schedule that measured best         measure  how long a schedule takes
kernels/    one file per family of layers           build    functions to machine code
peak        what the arithmetic units give
lower       a quantized graph as a program          program  its memory and its steps
arena       which planes lie in one place           pages       constants in one block of large pages
driver      all calls of a program as one function  plain       functions as C has them
ready       a program with its memory               executable  programs that run, profiled and verified
floats      families of ops on floats               memory      a decoder whose cache stays in place
floatpath/  float ops without a kernel, as functions that TVM schedules
ranges      ranges taken at run time            layout      how values lie: images, rows, borders
values      where every value is by now, while lowering
threads     the work of one function, divided       narrow      one thread of torch between our calls
selftest    what must hold before the first kernel
library/    a model as files that run without us
training/   draws, and activations stored in few bits
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompiler.backends.base import Executable
from qcompiler.backends.ort import Ort
from qcompiler.backends.ort.session import default_threads
from qcompiler.backends.tvm.build import processor_for
from qcompiler.backends.tvm.executable import TvmExecutable
from qcompiler.backends.tvm.fewbits import reads_few_bits
from qcompiler.backends.tvm.isa import AVX2, ISAS, NEON_DOT, Isa, runnable
from qcompiler.backends.tvm.schedules import read_schedules
from qcompiler.backends.tvm.selftest import check
from qcompiler.backends.tvm.threads import Team
from qcompiler.errors import TargetError
from qcompiler.ir import Graph
from qcompiler.passes.partition import partition
from qcompiler.target import Target, find_target
from qcompiler.target.machine import this_cpu
from qcompiler.tune.database import default_path

__all__ = ["Tvm", "TvmExecutable"]


class Tvm:
    """The backend named "tvm". A graph that is float throughout is left to ONNX Runtime."""

    name = "tvm"

    def __init__(
        self,
        target: Target | str = "cpu-tvm",
        *,
        isa: str | None = None,
        database: Path | None = None,
    ) -> None:
        """`isa` names one of the instruction sets that this CPU has; None is the best of them.

        `database` holds measured schedules; that of the user's cache folder if None.
        """
        self.target = find_target(target)
        self.isa = chosen(isa)
        check(self.isa)
        self.schedules = read_schedules(self.isa, processor_for(self.isa).name, database or default_path())

    def lower(self, graph: Graph, *, threads: int | None = None) -> Executable:
        if not partition(graph, self.target) and not reads_few_bits(graph, self.target):
            return Ort("cpu").lower(graph, threads=threads)
        team = Team(threads or default_threads())
        return TvmExecutable(graph=graph, target=self.target, isa=self.isa, team=team, choose=self.schedules)

    def write(self, graph: Graph, folder: Path) -> None:
        """Nothing: the graph is all that the kernels are made of."""

    def open(self, graph: Graph, folder: Path, *, threads: int | None = None) -> Executable:
        return self.lower(graph, threads=threads)

    def settings(self, graph: Graph, *, threads: int | None = None) -> Mapping[str, Any]:
        return {"threads": threads or default_threads(), "isa": self.isa.name}


def chosen(name: str | None) -> Isa:
    """The instruction set of that name, or the best of those that this CPU has."""
    found = {isa.name: isa for isa in runnable(this_cpu().features)}
    if not found:
        least = " or ".join(" and ".join(isa.features) for isa in (AVX2, NEON_DOT))
        raise TargetError(
            "the kernels of backend 'tvm' cannot run here",
            why=f"they want a CPU with {least}", fix="use backend='ort'",
        )  # fmt: skip
    if name is None:
        return next(iter(found.values()))
    if name not in found:
        exists = name in {isa.name for isa in ISAS}
        raise TargetError(
            f"backend 'tvm' cannot compute with the instruction set '{name}'",
            why="this CPU does not have it" if exists else "there is none of that name",
            fix=f"choose one of {', '.join(found)}",
        )
    return found[name]
