"""The value that every pass maps to another one: a functional graph of ATen ops with its tensors.

Graph = (nodes, constants by name, stage, calling convention, history)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.nn import functional as F

from qcompiler.errors import InputError
from qcompiler.ir.spec import TensorSpec, spec


@dataclass(frozen=True, kw_only=True)
class Signature:
    """How the model is called: pytree specs of its arguments and of its result.

    Invariant: `inputs` names the graph's placeholders in the order of the flattened arguments.
    """

    inputs: tuple[str, ...]
    in_spec: Any
    out_spec: Any
    argument_names: tuple[str, ...] = ()

    @cached_property
    def is_plain(self) -> bool:
        """Whether the model was traced on positional arguments alone, each of them one leaf."""
        positional = self.in_spec.child(0)
        leaves = all(positional.child(i).is_leaf() for i in range(positional.num_children))
        return leaves and not self.in_spec.child(1).num_children


@dataclass(frozen=True, kw_only=True)
class Note:
    """One thing that a pass did or declined to do, and why."""

    stage: str
    rule: str
    node: str
    outcome: str  # "applied" or "refused"
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.rule} {self.outcome} at {self.node}" + (f": {self.reason}" if self.reason else "")


Wanted = tuple[str, TensorSpec | None]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A torch.fx graph of ATen and `qcompiler::` ops, pure and in topological order.

    Invariants: every tensor value has a TensorSpec; every `get_attr` target is a key of `tensors`;
    nobody changes a Graph in place (passes work on `edit.Draft`, which copies).
    """

    fx: fx.Graph
    tensors: Mapping[str, Tensor]
    stage: str
    signature: Signature
    notes: tuple[Note, ...] = field(default=())

    @property
    def nodes(self) -> list[Node]:
        return list(self.fx.nodes)

    # A graph does not change, so what every call asks is found out once.

    @cached_property
    def inputs(self) -> list[Node]:
        return [node for node in self.fx.nodes if node.op == "placeholder"]

    @cached_property
    def wanted(self) -> list[Wanted]:
        """What a call must bring: name and spec of every input, a symbolic size as the text of its symbol."""
        return [(node.name, readable(spec(node))) for node in self.inputs]

    @cached_property
    def accepted(self) -> set[tuple[Any, ...]]:
        """Shapes and types of the calls that have been checked."""
        return set()

    @cached_property
    def output(self) -> Node:
        return self.fx.output_node()

    @property
    def results(self) -> list[Node]:
        """The nodes that the model returns (flattened, constants and None left out)."""
        return [arg for arg in self.output.args[0] if isinstance(arg, Node)]  # type: ignore[union-attr]

    @property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.fx.nodes}

    def noting(self, notes: Sequence[Note]) -> "Graph":
        return replace(self, notes=(*self.notes, *notes))


def readable(found: TensorSpec | None) -> TensorSpec | None:
    """Symbolic sizes as text: to compare them is slow, and every call does."""
    if found is None:
        return None
    shape = tuple(size if isinstance(size, int) else str(size) for size in found.shape)
    return TensorSpec(shape=shape, dtype=found.dtype)


Observe = Callable[[Node, Any], None]
Evaluate = Callable[[Node, tuple[Any, ...], dict[str, Any], Mapping[Node, Any]], Any]


# A value has no strides: what torch may view, because it has just made it contiguous, is here a reshape.
VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def operator_of(node: Node) -> Callable[..., Any]:
    """What computes a node."""
    return torch.ops.aten.reshape.default if node.target in VIEWS else node.target  # type: ignore[return-value]


def call_node(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], _: Mapping[Node, Any]) -> Any:
    """Run one op as torch does."""
    return operator_of(node)(*args, **kwargs)


def call_widened(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], seen: Mapping[Node, Any]) -> Any:
    """The same, but for a linear of halves: summed in float32 and rounded once, as on GPUs.

    CPUs without instructions for halves take several times as long for torch's own.
    """
    halves = (torch.bfloat16, torch.float16)
    if node.target is not torch.ops.aten.linear.default or args[0].dtype not in halves:
        return call_node(node, args, kwargs, seen)
    wide: list[Any] = [x if x is None else x.float() for x in args]
    return F.linear(*wide).to(args[0].dtype)


@torch.no_grad()
def evaluate(
    graph: Graph,
    inputs: Sequence[Any],
    *,
    observe: Observe | None = None,
    evaluate_node: Evaluate = call_node,
    lift: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> list[Any]:
    """Run a graph on flat `inputs` and return its flat outputs; values are freed after their last reader.

    `observe` sees every value; `evaluate_node` may compute an op in another way (the integer reference
    does); `lift` maps the constants, for example to float64.
    """
    readers = {node: len(node.users) for node in graph.fx.nodes}
    values: dict[Node, Any] = {}
    if len(inputs) != len(graph.inputs):
        raise InputError(
            f"the graph takes {len(graph.inputs)} inputs but got {len(inputs)}",
            fix="bring the call into the graph's order with flatten_inputs",
        )
    given = iter(inputs)
    for node in graph.fx.nodes:
        if node.op == "output":
            return [values[arg] if isinstance(arg, Node) else arg for arg in node.args[0]]
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = lift(graph.tensors[str(node.target)])
        else:
            args = fx.map_arg(node.args, values.__getitem__)
            kwargs = fx.map_arg(node.kwargs, values.__getitem__)
            values[node] = evaluate_node(node, args, dict(kwargs), values)
        if observe is not None:
            observe(node, values[node])
        if not readers[node]:
            del values[node]
        for read in node.all_input_nodes:
            readers[read] -= 1
            if not readers[read]:
                del values[read]
    raise AssertionError("a graph ends in an output node")
