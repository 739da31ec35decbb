"""Programs that run: one per shapes of a call, made when they first come."""

import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.base import Executed, Execution
from qcompiler.backends.reference import decoded
from qcompiler.backends.tvm.arena import memory
from qcompiler.backends.tvm.build import compiled, handed, host
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.lower import lower
from qcompiler.backends.tvm.pages import arranged
from qcompiler.backends.tvm.program import Call, Program, State, Step, Take, reads, tensors
from qcompiler.backends.tvm.verify import KernelDistance, distance
from qcompiler.ir import Graph, value
from qcompiler.plan import Plan
from qcompiler.target import Target

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A program with its functions compiled and its memory in place.

    runs: the steps, with all bound to them that is known before a call. constants: those that they read.
    """

    program: Program
    functions: Mapping[str, Any]
    arrays: Mapping[str, Any]
    handles: Mapping[str, Any]
    runs: tuple[Callable[[State], Any], ...]
    constants: Mapping[Node, Tensor]

    def state(self, inputs: Mapping[Node, Tensor]) -> State:
        values = {**self.constants, **inputs}
        return State(functions=self.functions, handles=self.handles, arrays=self.arrays, values=values)

    def run(self, inputs: Mapping[Node, Tensor]) -> dict[Node, Any]:
        """What torch knows afterwards."""
        state = self.state(inputs)
        for run in self.runs:
            run(state)
        return state.values


def made_ready(program: Program, graph: Graph) -> Ready:
    module = compiled(program.functions, host())
    names = [str(function.attrs["global_symbol"]) for function in program.functions]
    functions = {name: module[name] for name in names}
    arrays = memory(program) | arranged(program.constants)
    handles = {name: handed(array) for name, array in arrays.items()}
    read = {node for step in program.steps for node in reads(step)} | set(graph.output.all_input_nodes)
    return Ready(
        program=program, functions=functions, arrays=arrays, handles=handles,
        runs=tuple(bound(step, functions, arrays, handles) for step in program.steps),
        constants={node: tensor for node, tensor in tensors(graph).items() if node in read},
    )  # fmt: skip


def bound(
    step: Step, functions: Mapping[str, Any], arrays: Mapping[str, Any], handles: Mapping[str, Any]
) -> Callable[[State], Any]:
    match step:
        case Call(arguments=names) if all(name in handles for name in names):
            call = partial(functions[step.function], *[handles[name] for name in names])
            return lambda state: call()
        case Take():
            return partial(step.copy, step.view(arrays))
    return step.run


@dataclass(frozen=True, kw_only=True)
class TvmExecutable:
    """A graph that runs on kernels of our own; calls of several threads take turns."""

    graph: Graph
    target: Target
    isa: Isa
    programs: dict[Shapes, Ready] = field(default_factory=dict)
    turn: Any = field(default_factory=threading.Lock)

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        with self.turn:
            values = self.ready(inputs).run(self.given(inputs))
        returned = self.graph.output.args[0]
        return [decoded(values[arg]) if isinstance(arg, Node) else arg for arg in returned]  # type: ignore[union-attr]

    def ready(self, inputs: Sequence[Tensor]) -> Ready:
        shapes = tuple(tuple(x.shape) for x in inputs)
        if shapes not in self.programs:
            program = lower(self.graph, self.target, shapes_of(self.graph, inputs), self.isa)
            self.programs[shapes] = made_ready(program, self.graph)
        return self.programs[shapes]

    def given(self, inputs: Sequence[Tensor]) -> dict[Node, Tensor]:
        return dict(zip(self.graph.inputs, inputs, strict=True))

    @torch.no_grad()
    def profile(self, inputs: Sequence[Tensor], *, runs: int = 7) -> dict[str, float]:
        """Microseconds per run of every step, under the name of the node that it computes; medians."""
        times: dict[str, list[float]] = defaultdict(list)
        with self.turn:
            ready = self.ready(inputs)
            for _ in range(runs):
                state, spent = ready.state(self.given(inputs)), defaultdict[str, float](float)
                for step in ready.program.steps:
                    begin = time.perf_counter()
                    step.run(state)
                    spent[step.node.name] += (time.perf_counter() - begin) * 1e6
                for name, found in spent.items():
                    times[name].append(found)
        return {name: statistics.median(found) for name, found in times.items()}

    @torch.no_grad()
    def verify(self, inputs: Sequence[Tensor]) -> list[KernelDistance]:
        """Every kernel of ours against the reference on the inputs that it was given."""
        found = []
        with self.turn:
            ready = self.ready(inputs)
            state = ready.state(self.given(inputs))
            for step in ready.program.steps:
                step.run(state)
                if isinstance(step, Call) and step.regions:
                    found.append(distance(step, ready.program, state, self.graph))
        return found

    def execution(self, plan: Plan) -> Execution:
        """What the program of the traced shapes computes each planned layer with."""
        kernels = lower(self.graph, self.target, shapes_of(self.graph), self.isa).kernels
        layers = tuple(
            Executed(
                node=layer.node,
                kernel=kernels.get(layer.node, "torch") or "reference",
                precision=layer.precision if layer.node in kernels else "float",
            )
            for layer in plan.layers
        )
        return Execution(layers=layers, kernels=Counter(kernel or "reference" for kernel in kernels.values()))


def shapes_of(graph: Graph, inputs: Sequence[Tensor] = ()) -> dict[Node, tuple[int, ...]]:
    """The shapes of all tensors in a call, its symbolic sizes being those of the inputs; or as traced."""
    sizes: dict[Any, int] = {}
    for node, given in zip(graph.inputs, inputs, strict=bool(inputs)):
        for size, found in zip(value(node).shape, given.shape, strict=True):
            if isinstance(size, torch.SymInt):
                sizes[size.node.expr] = found

    def known(size: Any) -> int:
        if not isinstance(size, torch.SymInt):
            return int(size)
        return int(size.node.expr.subs(sizes)) if sizes else int(size.node.hint)

    return {
        node: tuple(map(known, held.shape))
        for node in graph.fx.nodes
        if isinstance(held := value(node) if node.op != "output" else None, Tensor)
    }
