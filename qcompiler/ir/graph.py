"""The value that every pass maps to another one: a functional graph of ATen ops with its tensors.

Graph = (nodes, constants by name, stage, calling convention, history)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError
from qcompiler.ir.spec import spec


@dataclass(frozen=True, kw_only=True)
class Signature:
    """How the model is called: pytree specs of its arguments and of its result.

    Invariant: `inputs` names the graph's placeholders in the order of the flattened arguments.
    """

    inputs: tuple[str, ...]
    in_spec: Any
    out_spec: Any
    argument_names: tuple[str, ...] = ()


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

    @property
    def inputs(self) -> list[Node]:
        return [node for node in self.fx.nodes if node.op == "placeholder"]

    @property
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


def flatten_inputs(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> list[Any]:
    """Bring a call `model(*args, **kwargs)` into the graph's flat order, checking it on the way."""
    flat = flatten_call(graph.signature, args, dict(kwargs or {}))
    for node, given in zip(graph.inputs, flat, strict=True):
        check_input(node, given)
    check_shared_sizes(graph, flat)
    return flat


def check_shared_sizes(graph: Graph, flat: Sequence[Any]) -> None:
    """A symbolic size that several inputs share (the batch) must be one number in a call."""
    seen: dict[str, tuple[str, int]] = {}
    for node, given in zip(graph.inputs, flat, strict=True):
        found = spec(node)
        for size, have in zip(found.shape if found else (), given.shape if found else (), strict=True):
            first = seen.setdefault(str(size), (node.name, have)) if not isinstance(size, int) else None
            if first is not None and first[1] != have:
                raise InputError(
                    f"input '{node.name}' has {have} rows and '{first[0]}' has {first[1]}",
                    why="they share that dimension",
                    fix="pass inputs of one batch size",
                )


def flatten_call(signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    given = pytree.tree_leaves((args, kwargs))
    try:
        return list(signature.in_spec.flatten_up_to((args, kwargs)))  # dicts may have their keys in any order
    except ValueError:
        pass  # another arrangement; perhaps the same arguments by name
    # An argument that the example gave by name has no known position.
    positional = signature.in_spec.child(0).num_children
    named = dict(zip(signature.argument_names[:positional], args, strict=False)) | kwargs
    if len(args) + len(kwargs) == len(named) and set(named) == set(signature.argument_names):
        given = pytree.tree_leaves(tuple(named[name] for name in signature.argument_names))
        if len(given) == len(signature.inputs):
            return list(given)
    wanted = ", ".join(signature.argument_names or signature.inputs)
    raise InputError(
        f"the model takes {len(signature.inputs)} inputs ({wanted});"
        f" the call has {len(given)}, arranged otherwise",
        why="it was compiled for the arrangement of the example inputs",
        fix="call it with the same positional and keyword arguments as the example",
    )


def check_input(node: Node, given: Any) -> None:
    """Refuse a tensor of another rank, fixed size or dtype than the one traced."""
    wanted = spec(node)
    if wanted is None:
        return
    if not isinstance(given, Tensor):
        raise InputError(
            f"input '{node.name}' is a {type(given).__name__}, not a tensor", fix=f"pass a tensor {wanted}"
        )
    fits = len(given.shape) == len(wanted.shape) and all(
        not isinstance(size, int) or size == have
        for size, have in zip(wanted.shape, given.shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"input '{node.name}' has shape {list(given.shape)}",
            why=f"the graph was traced for {wanted}",
            fix="pass that shape, or trace again with an example of the new one",
        )
    if given.dtype != wanted.dtype:
        raise InputError(
            f"input '{node.name}' has dtype {given.dtype}",
            why=f"the graph was traced for {wanted}",
            fix=f"convert it with .to({wanted.dtype})",
        )
