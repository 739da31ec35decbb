"""Programs ready to run: functions compiled, memory in place, and all bound that is known before a call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.tvm.arena import memory
from qcompiler.backends.tvm.build import compiled, handed, processor_for
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.pages import arranged
from qcompiler.backends.tvm.program import Call, Program, State, Step, Take, reads, tensors
from qcompiler.ir import Graph


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


def made_ready(program: Program, graph: Graph, isa: Isa, placed: dict[str, NDArray[Any]]) -> Ready:
    """`placed`: the constants of other programs of this graph; equal ones are shared, new ones join them."""
    module = compiled(program.functions, processor_for(isa))
    names = [str(function.attrs["global_symbol"]) for function in program.functions]
    functions = {name: module[name] for name in names}
    arrays = memory(program) | constants_of(program, placed)
    handles = {name: handed(array) for name, array in arrays.items()}
    read = {node for step in program.steps for node in reads(step)} | set(graph.output.all_input_nodes)
    return Ready(
        program=program, functions=functions, arrays=arrays, handles=handles,
        runs=tuple(bound(step, functions, arrays, handles) for step in program.steps),
        constants={node: tensor for node, tensor in tensors(graph).items() if node in read},
    )  # fmt: skip


def constants_of(program: Program, placed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    known = {
        name: placed[name]
        for name, array in program.constants.items()
        if name in placed and np.array_equal(placed[name], array.reshape(-1))
    }
    new = arranged({name: array for name, array in program.constants.items() if name not in known})
    placed.update(new)
    return known | new


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
