"""A lowered graph that runs where its inputs are: kernels on CUDA, the ops' references on a CPU.

    shapes of a call  -->  rows of each layer  -->  candidates by decisions over them  -->  a program

Programs are made once for each set of candidates, and replayed whole on CUDA.
"""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.base import Engine, Executed, Execution, NodeDistance, Prediction
from qcompiler.backends.shapes import Shapes, shapes_of
from qcompiler.backends.triton.decisions import DEFAULT, Decisions, Table
from qcompiler.backends.triton.engine.candidates import OURS, Candidate, candidate
from qcompiler.backends.triton.engine.capture import Captures
from qcompiler.backends.triton.engine.layer import Layer, Layers
from qcompiler.backends.triton.engine.lower import Program, kernel_of, lower
from qcompiler.backends.triton.engine.onward import handed_on
from qcompiler.backends.triton.engine.predict import device_for, predictions
from qcompiler.backends.triton.engine.verify import distance
from qcompiler.backends.triton.ops.quantize import padded
from qcompiler.backends.triton.ops.schedule import reading
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.errors import InputError, LoweringError
from qcompiler.ir import Graph, evaluate, label, spec
from qcompiler.ir.graph import operator_of
from qcompiler.plan import Plan
from qcompiler.target import Target

CPU = torch.device("cpu")
MANY = 8192  # rows, beyond which nothing is decided otherwise


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What computes a layer in calls of so many rows; `why` the one that decisions name does not."""

    by: Candidate
    rows: int
    decisions: Decisions
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class TritonExecutable:
    """A quantized graph with its layers, and what was made of it for the calls so far.

    database: whose rows say how kernels run; that of `default_path` if None.
    """

    graph: Graph
    target: Target
    layers: Layers
    table: Table
    database: Path | None = None
    captures: Captures | None = field(default_factory=Captures)
    chosen: dict[Shapes, Mapping[str, Choice]] = field(default_factory=dict)
    programs: dict[tuple[str, ...], Program] = field(default_factory=dict)
    placed: dict[tuple[tuple[str, ...], torch.device], Graph] = field(default_factory=dict)
    constants: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        device = device_of(inputs)
        if device.type == "cuda" and self.captures is not None:
            return self.captures(self.run, inputs)
        return self.run(inputs)

    def run(
        self, inputs: Sequence[Any], *, around: Callable[..., Any] | None = None, **how: Any
    ) -> list[Any]:
        """Op by op; `around` computes a node by calling what it is given."""
        device = device_of(inputs)

        def compute(node: Node, args: Any, kwargs: dict[str, Any], _: Mapping[Node, Any]) -> Any:
            there = kwargs | {"device": device} if "device" in kwargs else kwargs

            def call() -> Any:
                return operator_of(node)(*args, **there)

            return call() if around is None else around(node, call)

        with reading(self.database):
            return evaluate(self.on(device, inputs), inputs, evaluate_node=compute, **how)

    # ---------------------------------------------------------------- what was made of it

    def choices(self, inputs: Sequence[Tensor] = ()) -> Mapping[str, Choice]:
        """By the name of a layer's anchor, for a call; without one for as many rows as the model fixes.

        Where calls may have any number of rows, that is many.
        """
        key = tuple(tuple(x.shape) for x in inputs if isinstance(x, Tensor))
        if key not in self.chosen:
            shapes = shapes_of(self.graph, inputs)
            rows = {
                layer.anchor.name: rows_of(layer, shapes)
                if inputs or is_fixed(layer)
                else max((MANY, *self.decisions(layer).borders))
                for layer in self.layers.found
            }
            self.chosen[key] = {
                layer.anchor.name: self.choice(layer, rows[layer.anchor.name]) for layer in self.layers.found
            }
        return self.chosen[key]

    def decisions(self, layer: Layer) -> Decisions:
        return self.table.get(layer.problem, DEFAULT[layer.problem.format])

    def choice(self, layer: Layer, rows: int) -> Choice:
        decisions = self.decisions(layer)
        name, format = decisions.choose(rows) if rows else FLOAT, layer.problem.format  # no kernel takes none
        found = candidate(name, format)
        if found is None:
            raise LoweringError(
                f"decisions for {layer.problem} name '{name}'", why="there is no such candidate",
                fix="remove the row, or choose again",
            )  # fmt: skip
        why = found.refuses(rows, layer.problem.N, padded(layer.problem.K))
        ours = candidate(OURS[format], format)
        assert ours is not None
        return Choice(by=ours if why else found, rows=rows, decisions=decisions, why=why)

    def names(self, inputs: Sequence[Any]) -> tuple[str, ...]:
        return tuple(choice.by.name for choice in self.choices(inputs).values())

    def program(self, inputs: Sequence[Any]) -> Program:
        names = self.names(inputs)
        if names not in self.programs:
            self.programs[names] = lower(self.graph, self.layers.found, chosen(self.choices(inputs)))
        return self.programs[names]

    def handed(self, choices: Mapping[str, Choice]) -> Mapping[Node, Layer]:
        """The `quantize` nodes that layers compute for their readers."""
        return handed_on(self.layers.found, chosen(choices))

    def on(self, device: torch.device, inputs: Sequence[Any]) -> Graph:
        """The lowered graph of a call with its constants on a device; equal ones are there once."""
        program, key = self.program(inputs), (self.names(inputs), device)
        if key not in self.placed:
            tensors = {name: self.constant(name, x, device) for name, x in program.graph.tensors.items()}
            self.placed[key] = replace(program.graph, tensors=tensors)
        return self.placed[key]

    def constant(self, name: str, x: Tensor, device: torch.device) -> Tensor:
        if (name, device) not in self.constants:
            self.constants[name, device] = x.to(device)
        return self.constants[name, device]

    # ---------------------------------------------------------------- what is found out about it

    def profile(self, inputs: Sequence[Tensor], *, runs: int = 5) -> dict[str, float]:
        """Microseconds per run of every node, by planned name; medians, by CUDA's events or a CPU's clock.

        The call of a gate and what it multiplies counts half for each of both: they are as large.
        """
        calls = {call.node.name: call.layer for call in self.program(inputs).calls}
        times: dict[str, list[float]] = defaultdict(list)
        timer = on_cuda if device_of(inputs).type == "cuda" else on_cpu
        for _ in range(runs):
            spent: list[tuple[str, Callable[[], float]]] = []

            def timed(node: Node, call: Callable[[], Any], spent: Any = spent) -> Any:
                result, microseconds = timer(call)
                spent.append((node.name, microseconds))
                return result

            self.run(inputs, around=timed)
            for name, microseconds in spent:
                names = calls[name].names if name in calls else (name,)
                for each in names:
                    times[each].append(microseconds() / len(names))
        return {name: statistics.median(found) for name, found in times.items()}

    def verify(self, inputs: Sequence[Tensor]) -> list[NodeDistance]:
        """Every layer against the reference on the inputs that it was really given, where these are."""
        program = self.program(inputs)
        wanted = {
            node
            for call in program.calls
            for node in (call.node, call.x, call.bias, call.residual)
            if node is not None
        }
        values: dict[Node, Any] = {}

        def keep(node: Node, value: Any) -> None:
            if node in wanted:
                values[node] = value

        self.run(inputs, observe=keep)
        return [distance(call, values, self.graph) for call in program.calls]

    def execution(self, plan: Plan) -> Execution:
        """What computes each planned layer, in calls of many rows where these may be any."""
        choices = self.choices()
        handing = {layer.anchor.name for layer in self.handed(choices).values()}
        layers = tuple(self.executed(layer.node, layer.precision, choices, handing) for layer in plan.layers)
        return Execution(
            layers=layers,
            kernels=Counter(layer.kernel for layer in layers if layer.kernel),
            remarks=self.remarks(choices),
        )

    def executed(
        self, node: str, planned: str, choices: Mapping[str, Choice], handing: Collection[str]
    ) -> Executed:
        """handing: names of anchors whose codes are handed on."""
        layer = next((each for each in self.layers.found if node in each.names), None)
        if any(end.name == node for layer in self.layers.found for end in layer.tail):
            return Executed(node=node, kernel="", precision="float", reason="merged into another kernel")
        if layer is None:
            why = self.refused(node) if planned != "float" else ""
            return Executed(node=node, kernel="torch", precision="float", reason=why)
        gate = layer.anchor
        choice, is_beside = choices[gate.name], node != gate.name
        kernel = "" if is_beside else kernel_of(layer, choice.by, node in handing)
        if choice.by.reads_codes:
            reason = f"computed with its gate, {label(gate)}" if is_beside else choice.why
            return Executed(node=node, kernel=kernel, precision=planned, reason=reason)
        return Executed(
            node=node, kernel=kernel, precision="float",
            reason=f"every call has {choice.rows} row{'s' if choice.rows > 1 else ''}, which read the weight"
            f" decoded ({choice.decisions}); trace with the sizes that are served, or keep it in float",
        )  # fmt: skip

    def refused(self, node: str) -> str:
        return self.layers.refused.get(node, "no op computes it; keep it in float by an override")

    def remarks(self, choices: Mapping[str, Choice]) -> tuple[str, ...]:
        """What nobody should find out by surprise, once each."""
        found = []
        guessed = sum(not choice.decisions.measured for choice in choices.values())
        if guessed:
            found.append(
                f"predicted: no measured row says what computes {guessed} of {len(choices)} layers,"
                " so defaults do"
            )
        varying = Counter(str(self.decisions(layer)) for layer in self.layers.found if not is_fixed(layer))
        found += [
            f"the rows of {count} layers vary by call: {text}"
            for text, count in varying.items()
            if "," in text
        ]
        found += [
            f"{count} gate{'s are' if count > 1 else ' is'} computed apart: {why}"
            for why, count in Counter(self.layers.apart.values()).items()
        ]
        found += [
            f"{name}: {choice.why}; {choice.by.name} computes it"
            for name, choice in choices.items()
            if choice.why
        ]
        return (*found, *(self.captures.refused if self.captures is not None else ()))

    def at_home(self) -> Engine | None:
        """The same on a GPU; None where there is none, or no Triton."""
        present = torch.cuda.is_available() and find_spec("triton") is not None
        return AtHome(executable=self, device=torch.device("cuda")) if present else None

    def predicted(self, inputs: Sequence[Tensor]) -> list[Prediction]:
        choices = self.choices(inputs)
        rows = {name: choice.rows for name, choice in choices.items()}
        floats = [name for name, choice in choices.items() if not choice.by.reads_codes]
        handed = self.handed(choices)
        return predictions(self.layers.found, rows, floats, handed, device_for(self.target))


@dataclass(frozen=True, kw_only=True)
class AtHome:
    """An executable that takes inputs from anywhere to a device, and is done when it returns."""

    executable: TritonExecutable
    device: torch.device

    @property
    def graph(self) -> Graph:
        return self.executable.graph

    def taken(self, inputs: Sequence[Any]) -> list[Any]:
        return [x.to(self.device) if isinstance(x, Tensor) else x for x in inputs]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        results = self.executable(self.taken(inputs))
        torch.cuda.synchronize(self.device)
        return results

    def profile(self, inputs: Sequence[Tensor]) -> Mapping[str, float]:
        return self.executable.profile(self.taken(inputs))

    def verify(self, inputs: Sequence[Tensor]) -> Sequence[NodeDistance]:
        return self.executable.verify(self.taken(inputs))

    def execution(self, plan: Plan) -> Execution:
        return self.executable.execution(plan)


def chosen(choices: Mapping[str, Choice]) -> Mapping[str, Candidate]:
    return {name: choice.by for name, choice in choices.items()}


def rows_of(layer: Layer, shapes: Mapping[Node, tuple[int, ...]]) -> int:
    """The rows of what a layer reads."""
    total = 1
    for size in shapes[layer.x][:-1]:
        total *= size
    return total


def is_fixed(layer: Layer) -> bool:
    """Whether all calls have as many rows."""
    found = spec(layer.x)
    return found is not None and all(isinstance(size, int) for size in found.shape[:-1])


def device_of(inputs: Sequence[Any]) -> torch.device:
    """Where all tensors of a call are; a CPU where there are none."""
    devices = {x.device for x in inputs if isinstance(x, Tensor)}
    if len(devices) > 1:
        raise InputError(
            f"inputs are on {' and '.join(sorted(map(str, devices)))}",
            why="a model runs on one device", fix="move them to one",
        )  # fmt: skip
    return next(iter(devices), CPU)


def on_cpu(call: Callable[[], Any]) -> tuple[Any, Callable[[], float]]:
    begin = time.thread_time()
    result = call()
    spent = (time.thread_time() - begin) * 1e6
    return result, lambda: spent


def on_cuda(call: Callable[[], Any]) -> tuple[Any, Callable[[], float]]:
    """Read after all is launched, since reading waits."""
    first, last = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it open
        for _ in range(2)
    )
    first.record()
    result = call()
    last.record()

    def microseconds() -> float:
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e3

    return result, microseconds
