"""Programs ready to run: compiled, memory in place, and all bound that is known before a call.

steps    load, call, call, call, take    -->    runs    load, main(calls 0 .. 2), take
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.tvm.arena import memory
from qcompiler.backends.tvm.build import assembled, handed, placed, processor_for
from qcompiler.backends.tvm.driver import FIRST, MAIN, MEETING, WORKSPACE, Started, counters, driven, largest
from qcompiler.backends.tvm.isa import Isa, Processor
from qcompiler.backends.tvm.narrow import one_thread
from qcompiler.backends.tvm.pages import arranged
from qcompiler.backends.tvm.program import Call, Host, OnPlane, Program, State, Step, reads, tensors
from qcompiler.backends.tvm.threads import Team, divided
from qcompiler.ir import Graph

Run = Callable[[State], Any]


@dataclass(frozen=True, kw_only=True)
class Code:
    """The calls of a program as one compiled function, and the threads that run it.

    functions: those that steps call with torch's tensors. meeting, workspace: memory of the team.
    places: name -> its place in the table of addresses.
    """

    main: Callable[..., Any]
    functions: Mapping[str, Callable[..., Any]]
    team: Team
    meeting: NDArray[np.int32]
    workspace: NDArray[np.uint8]
    places: Mapping[str, int]

    def run(self, table: Any, first: int, last: int) -> None:
        """The calls first .. last - 1."""
        main, size = self.main, self.team.size
        if size == 1:
            main(table, first, last, 0, 1)
            return
        try:
            self.team.run(lambda thread: main(table, first, last, thread, size), self.give_up)
        except BaseException:
            self.meeting[:] = 0
            raise

    def give_up(self) -> None:
        """Threads wait for nobody any more; what they compute is of no use."""
        self.meeting[-1] = 1


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A program with its calls compiled and its memory in place.

    runs: the steps, calls side by side as one, and all bound that is known before a call.
    constants: those of torch that the steps read.
    """

    program: Program
    code: Code
    arrays: Mapping[str, Any]
    addresses: NDArray[np.int64]
    runs: tuple[Run, ...]
    constants: Mapping[Node, Tensor]

    def state(self, inputs: Mapping[Node, Tensor]) -> State:
        values = {**self.constants, **inputs}
        return State(
            arrays=self.arrays, values=values, addresses=self.addresses, places=self.code.places,
            functions=self.code.functions,
        )  # fmt: skip

    def run(self, inputs: Mapping[Node, Tensor]) -> dict[Node, Any]:
        """What torch knows afterwards."""
        state = self.state(inputs)
        with one_thread():
            for run in self.runs:
                run(state)
        return state.values

    def each(self) -> list[tuple[Step, Run]]:
        """The steps one by one."""
        return [
            (step, run)
            for step in self.program.steps
            for run in bound([step], self.program, self.code, self.arrays, self.addresses)
        ]

    def without(self, kind: Any, arrays: Mapping[str, NDArray[Any]]) -> "Ready":
        """The same without steps of some kind, and with other memory under some names."""
        steps = [step for step in self.program.steps if not isinstance(step, kind)]
        return ready(self.program, steps, self.code, {**self.arrays, **arrays}, self.constants)


def made_ready(program: Program, graph: Graph, isa: Isa, team: Team, known: dict[str, NDArray[Any]]) -> Ready:
    """`known`: the constants of other programs of this graph; equal ones are shared, new ones join them."""
    read = {node for step in program.steps for node in reads(step)} | set(graph.output.all_input_nodes)
    constants = {node: tensor for node, tensor in tensors(graph).items() if node in read}
    held = constants_of(program, known)
    program = replace(program, constants=held)  # and not as they were packed: weights lie in memory once
    return ready(program, program.steps, built(program, isa, team), memory(program) | held, constants)


def ready(
    program: Program, steps: Sequence[Step], code: Code, arrays: Mapping[str, NDArray[Any]],
    constants: Mapping[Node, Tensor],
) -> Ready:  # fmt: skip
    addresses = placed(np.zeros(len(code.places) + FIRST, np.int64))
    addresses[MEETING], addresses[WORKSPACE] = code.meeting.ctypes.data, code.workspace.ctypes.data
    for name, place in code.places.items():
        addresses[place] = arrays[name].ctypes.data if name in arrays else 0  # 0: loaded call by call
    return Ready(
        program=program, code=code, arrays=arrays, addresses=addresses, constants=constants,
        runs=tuple(bound(steps, program, code, arrays, addresses)),
    )  # fmt: skip


def calls_of(program: Program) -> list[Call]:
    return [step for step in program.steps if isinstance(step, Call)]


def built(program: Program, isa: Isa, team: Team) -> Code:
    """The calls compiled; functions that are worth it divide their work among the team."""
    made = kernels(program, isa, team.size, processor_for(isa))
    main = made.module[MAIN]
    main.release_gil = True  # or threads that wait for each other would wait for ever
    return Code(
        main=main, functions={name: made.module[name] for name in made.others}, team=team,
        places=made.places,
        meeting=placed(np.zeros(counters(team.size), np.int32)),
        workspace=placed(np.zeros(made.workspace, np.uint8)),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The calls of a program compiled.

    workspace: bytes that all threads together work in. others: functions that take tensors, by name.
    """

    module: Any
    places: Mapping[str, int]
    workspace: int
    others: tuple[str, ...]


def kernels(program: Program, isa: Isa, threads: int, processor: Processor) -> Kernels:
    calls = calls_of(program)
    names = dict.fromkeys(name for call in calls for name in call.arguments)
    places = {name: place for place, name in enumerate(names, FIRST)}
    called = {call.function for call in calls}
    whole = {name: each for name, each in named(program).items() if name in called}
    others = {name: each for name, each in named(program).items() if name not in called}
    shared = {name: found for name, each in whole.items() if threads > 1 and (found := divided(each))}
    functions = {name: shared[name][0] if name in shared else each for name, each in whole.items()}
    started = [
        Started(
            function=call.function, places=tuple(places[name] for name in call.arguments),
            turns=shared[call.function][1] if call.function in shared else None,
        )
        for call in calls
    ]  # fmt: skip
    made = driven(functions, started, len(places) + FIRST, threads, isa)
    return Kernels(
        module=assembled({**made, **others}, processor), places=places,
        workspace=largest(functions) * threads, others=tuple(others),
    )  # fmt: skip


def named(program: Program) -> dict[str, Any]:
    return {str(function.attrs["global_symbol"]): function for function in program.functions}


def constants_of(program: Program, shared: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    known = {
        name: shared[name]
        for name, array in program.constants.items()
        if name in shared and np.array_equal(shared[name], array.reshape(-1))
    }
    new = arranged({name: array for name, array in program.constants.items() if name not in known})
    shared.update(new)
    return known | new


def bound(
    steps: Sequence[Step], program: Program, code: Code, arrays: Mapping[str, Any], addresses: Any
) -> Iterator[Run]:
    """A run for each row of calls and for every other step."""
    turns = {call: turn for turn, call in enumerate(calls_of(program))}
    table = handed(addresses)
    for is_call, row in groupby(steps, lambda step: isinstance(step, Call)):
        if is_call:
            numbers = [turns[call] for call in row]  # type: ignore[index]
            yield started(partial(code.run, table, numbers[0], numbers[-1] + 1))
            continue
        for step in row:
            assert isinstance(step, Host)
            yield partial(step.move, step.view(arrays)) if isinstance(step, OnPlane) else step.run


def started(calls: Callable[[], None]) -> Run:
    """Calls find all they need in the table."""
    return lambda state: calls()
