"""Programs ready to run: functions compiled, memory in place, and all bound that is known before a call."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.tvm.arena import memory
from qcompiler.backends.tvm.build import compiled, handed, processor_for
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.pages import arranged
from qcompiler.backends.tvm.program import Call, Program, State, Step, Take, reads, tensors
from qcompiler.backends.tvm.threads import Team, divided
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
        with one_thread():
            for run in self.runs:
                run(state)
        return state.values


@contextmanager
def one_thread() -> Iterator[None]:
    """What torch computes in between is small, and its threads spin behind it on cores that ours want."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def made_ready(
    program: Program, graph: Graph, isa: Isa, team: Team, placed: dict[str, NDArray[Any]]
) -> Ready:
    """`placed`: the constants of other programs of this graph; equal ones are shared, new ones join them."""
    functions = built(program.functions, isa, team)
    arrays = memory(program) | constants_of(program, placed)
    handles = {name: handed(array) for name, array in arrays.items()}
    read = {node for step in program.steps for node in reads(step)} | set(graph.output.all_input_nodes)
    return Ready(
        program=program, functions=functions, arrays=arrays, handles=handles,
        runs=tuple(bound(step, functions, arrays, handles) for step in program.steps),
        constants={node: tensor for node, tensor in tensors(graph).items() if node in read},
    )  # fmt: skip


def built(functions: Sequence[Any], isa: Isa, team: Team) -> dict[str, Callable[..., Any]]:
    """Functions by name, as they are called; those that are worth it divide their work among a team."""
    named = {str(function.attrs["global_symbol"]): function for function in functions}
    shared = {name: divided(function) for name, function in named.items()} if team.size > 1 else {}
    parts = {name: found for name, found in shared.items() if found is not None}
    module = compiled(
        [parts[name][0] if name in parts else named[name] for name in named], processor_for(isa)
    )
    return {
        name: partial(team.run, module[name], parts[name][1]) if name in parts else module[name]
        for name in named
    }


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
