"""How the constants of a canonical graph follow from the parameters of the model.

    folded = w * (gamma / sqrt(var + eps))        one constant of the graph, four tensors of the model

A pass folds by computing, so it is enough to write down what is computed while the passes run. What was
written down can be computed again, for other values of the parameters and with gradients.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from qcompiler.errors import GraphError

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One op on tensors, and what it returned."""

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """Where a tensor comes from: a result of a step, or a tensor of the model by name."""

    step: Step | None = None
    position: int = 0
    name: str = ""


# What repeats a tensor, and would cut its gradient off or copy it at every step.
REPEATS = (aten.detach.default, aten.clone.default, aten.alias.default)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """While it is entered, every op that reads a tensor of the model, or what came of one, is written down.

    It holds all that was read and returned, so that no identity stands for two tensors.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.roots = dict(tensors)
        self.made = {id(tensor): Made(name=name) for name, tensor in tensors.items()}
        self.overwritten: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(id(leaf) in self.made for leaf in read):
            return result
        if func._schema.is_mutable:
            self.overwritten.update(map(id, read))
        results = tuple(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))
        step = Step(op=func, args=args, kwargs=kwargs, results=results)
        for position, leaf in enumerate(results):
            if type(leaf) is Tensor:
                self.made.setdefault(id(leaf), Made(step=step, position=position))
        return result


class Emitter:
    """Adds to an fx graph what computes tensors that were recorded; each is computed once.

    `constants` are the tensors that follow from none of the model's, by the `get_attr` names they were given.
    """

    def __init__(self, recorder: Recorder, graph: fx.Graph, home: str) -> None:
        self.recorder, self.graph, self.home = recorder, graph, home
        self.known: dict[int, Node] = {}
        self.constants: dict[str, Tensor] = {}

    def emit(self, tensor: Tensor) -> Node:
        """The node of a tensor; raises GraphError where a pass has written to it in place."""
        if id(tensor) not in self.known:
            self.known[id(tensor)] = self.made(tensor, self.recorder.made.get(id(tensor)))
        return self.known[id(tensor)]

    def made(self, tensor: Tensor, made: Made | None) -> Node:
        if id(tensor) in self.recorder.overwritten:
            raise GraphError(
                "a constant of the canonical graph cannot be traced back to the model's parameters",
                why="a pass has written to a tensor in place",
                fix="compute a new tensor in that pass",
            )
        if made is None:
            name = f"{self.home}.c{len(self.constants)}"
            self.constants[name] = tensor
            return self.graph.get_attr(name)
        step = made.step
        if step is None:
            return self.graph.get_attr(made.name)
        if step.op in REPEATS:
            return self.emit(step.args[0])
        args, kwargs = pytree.tree_map_only(Tensor, self.emit, (step.args, dict(step.kwargs)))
        node = self.graph.call_function(step.op, args, kwargs)
        return (
            self.graph.call_function(operator.getitem, (node, made.position))
            if len(step.results) > 1
            else node
        )
