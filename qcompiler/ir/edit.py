"""Changing a graph: a `Draft` is a private copy that a pass edits and then finishes into a new Graph."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Node

from qcompiler.ir.graph import Graph, Note, operator_of
from qcompiler.ir.spec import inherit, set_value, value


class Draft:
    """An editable copy of a graph; new nodes get their TensorSpec as they are made."""

    def __init__(self, graph: Graph) -> None:
        self.origin = graph
        self.fx = fx.Graph()
        self.copied: dict[Node, Node] = {}
        returned = self.fx.graph_copy(graph.fx, self.copied)
        self.fx.output(returned)
        self.tensors: dict[str, Tensor] = dict(graph.tensors)
        self.notes: list[Note] = []
        self.fake_mode = fake_mode_of(graph)

    @property
    def nodes(self) -> list[Node]:
        return list(self.fx.nodes)

    def note(self, rule: str, node: Node | str, outcome: str, reason: str = "") -> None:
        name = node if isinstance(node, str) else node.name
        self.notes.append(Note(stage=self.origin.stage, rule=rule, node=name, outcome=outcome, reason=reason))

    def call(
        self,
        target: Callable[..., Any],
        /,  # operators have an argument called self, too
        *args: Any,
        before: Node,
        name: str | None = None,
        origin: Node | None = None,
        **kwargs: Any,
    ) -> Node:
        """Insert `target(*args, **kwargs)` before a node and infer its spec.

        `origin` is the node whose place in the user's model the new one takes over (default: `before`).
        """
        with self.fx.inserting_before(before):
            node = self.fx.create_node("call_function", target, args, kwargs, name=name)
        normalize_arguments(node)
        self.infer(node)
        inherit(node, origin or before)
        return node

    def infer(self, node: Node) -> None:
        args = fx.map_arg(node.args, value)
        kwargs = fx.map_arg(node.kwargs, value)
        with self.fake_mode:
            set_value(node, operator_of(node)(*args, **kwargs))

    def constant(self, name: str, tensor: Tensor, *, before: Node) -> Node:
        """A get_attr node for a new constant; `name` is made unique."""
        unique, count = name, 0
        while unique in self.tensors and self.tensors[unique] is not tensor:
            count += 1
            unique = f"{name}_{count}"
        self.tensors[unique] = tensor.detach() if tensor.requires_grad else tensor
        with self.fx.inserting_before(before):
            node = self.fx.get_attr(unique)
        set_value(node, self.fake_mode.from_tensor(tensor.detach(), static_shapes=True))
        return node

    def tensor(self, node: Any) -> Tensor | None:
        """The tensor behind a constant node, else None."""
        return self.tensors[str(node.target)] if isinstance(node, Node) and node.op == "get_attr" else None

    def replace(self, old: Node, new: Node, only: Iterable[Node] | None = None) -> None:
        """Let all readers of `old` (or only some) read `new`."""
        readers = set(old.users if only is None else only) - {new}
        for reader in readers:
            reader.replace_input_with(old, new)

    def finish(self, stage: str | None = None) -> Graph:
        """Drop what nobody reads, keep the order, and return the new graph."""
        for node in reversed(self.nodes):
            if node.op in ("call_function", "get_attr") and not node.users:
                self.fx.erase_node(node)
        used = {str(node.target) for node in self.fx.nodes if node.op == "get_attr"}
        return replace(
            self.origin,
            fx=self.fx,
            tensors={name: tensor for name, tensor in self.tensors.items() if name in used},
            stage=stage or self.origin.stage,
            notes=(*self.origin.notes, *self.notes),
        )


def fake_mode_of(graph: Graph) -> FakeTensorMode:
    """The mode whose symbolic sizes this graph's specs use."""
    for node in graph.fx.nodes:
        found = value(node)
        if isinstance(found, FakeTensor):
            return found.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of an op by their schema names, defaults filled in; of plain Python, by position."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(position): arg for position, arg in enumerate(node.args)}
    schema = node.target._schema
    bound: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if not argument.kwarg_only and position < len(node.args):
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def normalize_arguments(node: Node) -> None:
    """Write an op's arguments in one form: positional ones all present, keywords only where not default."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    schema = node.target._schema
    bound = arguments(node)
    node.args = tuple(bound[a.name] for a in schema.arguments if not a.kwarg_only and a.name in bound)
    node.kwargs = {
        a.name: bound[a.name]
        for a in schema.arguments
        if a.kwarg_only and a.name in bound and bound[a.name] != a.default_value
    }


def with_tensors(graph: Graph, changed: Mapping[str, Tensor]) -> Graph:
    """The same nodes over other constants (equalisation and bias correction need nothing else)."""
    return replace(graph, tensors={**graph.tensors, **changed})
