"""Programs that run: one per shapes of a call, made when they first come."""

import math
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.base import Executed, Execution, NodeDistance
from qcompiler.backends.memory import HeldMemory, Memory, cache_shapes
from qcompiler.backends.reference import decoded
from qcompiler.backends.shapes import Shapes, shapes_of
from qcompiler.backends.tvm.floatpath.steps import KERNEL
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.lower import lower
from qcompiler.backends.tvm.memory import KeptMemory
from qcompiler.backends.tvm.narrow import one_thread
from qcompiler.backends.tvm.program import Call, Enter, Program
from qcompiler.backends.tvm.ready import Ready, made_ready
from qcompiler.backends.tvm.schedules import Choose
from qcompiler.backends.tvm.threads import Team
from qcompiler.backends.tvm.verify import (
    distance,
    distance_of_few_bits,
    distance_of_floats,
    rounded_sources,
)
from qcompiler.ir import Graph, value
from qcompiler.passes.profit import Fusion
from qcompiler.plan import Plan
from qcompiler.target import Target


@dataclass(frozen=True, kw_only=True)
class TvmExecutable:
    """A graph that runs on kernels of our own; calls of several threads take turns."""

    graph: Graph
    target: Target
    isa: Isa
    team: Team = field(default_factory=lambda: Team(1))
    choose: Choose | None = None  # schedules of layers; the predicted ones if None
    lowered: dict[Shapes, Program] = field(default_factory=dict)  # and not made ready yet
    programs: dict[Shapes, Ready] = field(default_factory=dict)
    placed: dict[str, NDArray[Any]] = field(default_factory=dict)
    turn: Any = field(default_factory=threading.Lock)

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        values = self.empty(inputs)
        if values is None:
            with self.turn:
                values = self.ready(inputs).run(self.given(inputs))
        returned = self.graph.output.args[0]
        return [decoded(values[arg]) if isinstance(arg, Node) else arg for arg in returned]  # type: ignore[union-attr]

    def empty(self, inputs: Sequence[Tensor]) -> dict[Node, Any] | None:
        """The results of a call where all are empty, as those of no samples are; kernels have none such."""
        if all(x.numel() for x in inputs):
            return None
        shapes, results = shapes_of(self.graph, inputs), self.graph.output.all_input_nodes
        if not all(math.prod(shapes.get(node, ())) == 0 for node in results):
            return None
        return {node: torch.empty(shapes[node], dtype=value(node).dtype) for node in results}

    def ready(self, inputs: Sequence[Tensor]) -> Ready:
        key = tuple(tuple(x.shape) for x in inputs)
        if key not in self.programs:
            program = self.lowered.pop(key, None) or self.program(shapes_of(self.graph, inputs))
            self.programs[key] = made_ready(program, self.graph, self.isa, self.team, self.placed)
        return self.programs[key]

    def program(self, shapes: Mapping[Node, tuple[int, ...]]) -> Program:
        return lower(self.graph, self.target, shapes, self.isa, self.choose)

    def traced(self) -> Program:
        """Of the traced shapes; a call that has them later finds it lowered."""
        shapes = shapes_of(self.graph)
        key = tuple(shapes[node] for node in self.graph.inputs)
        if key in self.programs:
            return self.programs[key].program
        if key not in self.lowered:
            self.lowered[key] = self.program(shapes)
        return self.lowered[key]

    def fusions(self, inputs: Sequence[Tensor]) -> Sequence[Fusion]:
        """Those that were weighed for calls of these shapes, whether taken or refused."""
        with self.turn:
            return self.ready(inputs).program.fusions

    def memory(self) -> Memory:
        """The cache in place, if every part of it is what a kernel of ours writes into."""
        empty = [(1, 1), (), *((1, *shape[1:]) for shape in cache_shapes(self.graph))]
        steps = self.ready([torch.empty(shape, device="meta") for shape in empty]).program.steps
        entering = {step.node for step in steps if isinstance(step, Enter)}
        return KeptMemory(self) if entering == set(self.graph.inputs[2:]) else HeldMemory(self)

    def given(self, inputs: Sequence[Tensor]) -> dict[Node, Tensor]:
        return dict(zip(self.graph.inputs, inputs, strict=True))

    @torch.no_grad()
    def profile(
        self, inputs: Sequence[Tensor], *, runs: int = 7, clock: Callable[[], float] = time.thread_time
    ) -> dict[str, float]:
        """Microseconds per run of every step, under the name of the node that it computes; medians.

        By default those that the calling thread computes or waits for its team in compiled code: on a core
        that others use as well, a clock on the wall counts theirs, too. A team that has fewer cores than
        threads sleeps while it waits, and what it waits for is then not counted.
        """
        times: dict[str, list[float]] = defaultdict(list)
        with self.turn, one_thread():
            ready = self.ready(inputs)
            for _ in range(runs):
                state, spent = ready.state(self.given(inputs)), defaultdict[str, float](float)
                for step, run in ready.each():
                    begin = clock()
                    run(state)
                    spent[step.node.name] += (clock() - begin) * 1e6
                for name, found in spent.items():
                    times[name].append(found)
        return {name: statistics.median(found) for name, found in times.items()}

    @torch.no_grad()
    def verify(self, inputs: Sequence[Tensor]) -> list[NodeDistance]:
        """Kernels against the reference on the inputs that they were given.

        Regions and linears with weights of few bits are compared to the last bit, kernels of floats with the
        bounds that they state (`bounds.py`). Not looked at are attention over a cache, ranges taken at run
        time, codes that a kernel of their own makes, and functions that TVM schedules.
        """
        found: list[NodeDistance | None] = []
        sources: dict[str, Tensor] = {}
        with self.turn:
            ready = self.ready(inputs)
            program, state = ready.program, ready.state(self.given(inputs))
            for step, run in ready.each():
                run(state)
                if not isinstance(step, Call):
                    continue
                sources |= rounded_sources(step, sources, program, state, self.graph)
                if step.regions:
                    found.append(distance(step, program, state, self.graph))
                    continue
                found.append(distance_of_floats(step, program, state, self.graph))
                found.append(distance_of_few_bits(step, program, state, self.graph, sources, self.target))
        return [each for each in found if each is not None]

    def execution(self, plan: Plan) -> Execution:
        """What the program of the traced shapes computes each planned layer with."""
        with self.turn:
            kernels = self.traced().kernels
        layers = tuple(
            Executed(
                node=layer.node,
                kernel=kernels.get(layer.node, "torch") or "reference",
                precision=layer.precision if kernels.get(layer.node, KERNEL) != KERNEL else "float",
            )
            for layer in plan.layers
        )
        return Execution(layers=layers, kernels=Counter(kernel or "reference" for kernel in kernels.values()))
