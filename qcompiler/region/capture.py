"""What torch.compile hands over: one piece of a model's code as a graph, with its weights among the inputs.

f(weight, s0, x[s0, 3])  --resolved-->  f(weight, x)  --bound-->  f(x)
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from qcompiler.ir import value
from qcompiler.ir.spec import short_path, spec

# How torch.compile names an input that a module holds: l_self_modules_head_parameters_weight_
HELD = re.compile(r"_(parameters|buffers)_")

GRADIENTS = "gradients"  # why a call is torch's: it may be differentiated


@dataclass(frozen=True, kw_only=True)
class Break:
    """Where the graph of a piece of code ended, and why; `reason` is torch's."""

    where: str
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A tensor that the model holds, as it was when its region was captured."""

    tensor: Tensor
    version: int

    def is_same(self, given: Any) -> bool:
        return given is self.tensor and version(given) == self.version


@dataclass(frozen=True, kw_only=True)
class Capture:
    """One piece of code under one set of guards.

    Invariants: `original` takes all inputs, in torch.compile's order; `module` computes the same of the
    inputs at `positions`: tensors, and numbers that no tensor's size tells; `weights` are by position.
    """

    original: fx.GraphModule
    module: fx.GraphModule
    positions: tuple[int, ...]
    weights: Mapping[int, Weight]
    ended: Break | None

    @classmethod
    def of(cls, original: fx.GraphModule, given: Sequence[Any]) -> "Capture":
        module, positions = resolved(original)
        held = held_among(original, given)
        weights = {position: Weight(tensor=x, version=version(x)) for position, x in held.items()}
        return cls(
            original=original, module=module, positions=positions, weights=weights, ended=break_of(original)
        )

    def obstacle(self, given: Sequence[Any]) -> str | None:
        """Why a call is torch's, whatever the region could do; None if nothing stands in its way."""
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in given):
            return GRADIENTS
        for position, x in enumerate(given):
            weight = self.weights.get(position)
            if weight is not None and not weight.is_same(x):
                return "changed weights"
            if weight is None and isinstance(x, Tensor) and (not x.numel() or x.device.type != "cpu"):
                return "empty input" if not x.numel() else "device"
        return None

    @property
    def free_sizes(self) -> int:
        """How many sizes of its inputs are open."""
        found = [spec(node) for node in inputs(self.module)]
        return sum(not isinstance(size, int) for given in found if given for size in given.shape)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for captures that compute the same of the same weights, whatever their sizes."""
        tensors = tuple(id(self.weights[position].tensor) for position in self.positions
                        if position in self.weights)  # fmt: skip
        number = {node: index for index, node in enumerate(self.module.graph.nodes)}
        lines = tuple(
            (node.op, "" if node.op == "placeholder" else str(node.target),
             str(fx.map_arg((node.args, node.kwargs), lambda given: Numbered(number[given]))))
            for node in self.module.graph.nodes
        )  # fmt: skip
        return tensors, lines


class Numbered(str):
    """A node by its place, since its name differs from capture to capture."""

    def __new__(cls, place: int) -> "Numbered":
        return super().__new__(cls, f"%{place}")


def version(x: Tensor) -> int:
    """Counts the writes to a tensor; a tensor of inference mode does not count."""
    return -1 if x.is_inference() else x._version


def held_among(module: fx.GraphModule, given: Sequence[Any]) -> dict[int, Tensor]:
    """The inputs that are weights; one that only its name says so is compared at every call, too."""
    return {
        position: x
        for position, (node, x) in enumerate(zip(inputs(module), given, strict=True))
        if isinstance(x, Tensor) and (isinstance(x, nn.Parameter) or HELD.search(node.name))
    }


def inputs(module: fx.GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def resolved(module: fx.GraphModule) -> tuple[fx.GraphModule, tuple[int, ...]]:
    """Read sizes off the tensors that have them, and drop inputs that nothing reads.

    f(s0, x[s0, 3]) = x.view(s0, 3)  -->  f(x) = x.view(x.size(0), 3)

    A number that is the size of no input stays one.
    """
    given = inputs(module)
    homes = {
        str(size): (node, axis)
        for node in reversed(given)
        for axis, size in enumerate(spec(node).shape if spec(node) else ())  # type: ignore[union-attr]
        if not isinstance(size, int)
    }
    sized = {node: homes[str(value(node))] for node in given if is_number(node) and str(value(node)) in homes}
    read = {home for node, (home, _) in sized.items() if node.users}
    kept = [node for node in given if (node.users or node in read) and node not in sized]
    graph, new = fx.Graph(), dict[Node, Node]()
    for node in kept:
        new[node] = graph.node_copy(node)
    for node, (home, axis) in sized.items():
        if node.users:
            new[node] = graph.call_method("size", (new[home], axis))
            new[node].meta = dict(node.meta)
    for node in module.graph.nodes:
        if node.op != "placeholder":
            new[node] = graph.node_copy(node, new.__getitem__)
    for node in graph.nodes:
        if "example_value" in node.meta:  # fx would look for the inputs that name these sizes: they are gone
            node.meta["val"] = node.meta.pop("example_value")
    return fx.GraphModule(module, graph), tuple(given.index(node) for node in kept)


def bound(module: fx.GraphModule, given: Sequence[Any]) -> tuple[fx.GraphModule, tuple[int, ...]]:
    """Make weights part of the module: f(weight, x)  -->  f(x), and which inputs are left."""
    held = held_among(module, given)
    root, graph, new = nn.Module(), fx.Graph(), dict[Node, Node]()
    for node in module.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            attach(root, str(node.target), module)
    for position, node in enumerate(inputs(module)):
        if position in held:
            root.register_buffer(node.name, held[position].detach())
            new[node] = graph.get_attr(node.name)
        else:
            new[node] = graph.node_copy(node)
    for node in module.graph.nodes:
        if node.op != "placeholder":
            new[node] = graph.node_copy(node, new.__getitem__)
    left = tuple(position for position in range(len(given)) if position not in held)
    return fx.GraphModule(root, graph), left


def attach(root: nn.Module, target: str, source: nn.Module) -> None:
    """Give `root` the attribute that a graph reads under a dotted name."""
    *path, name = target.split(".")
    found: Any = source
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root, found = getattr(root, part), getattr(found, part)
    found = getattr(found, name)
    if isinstance(found, Tensor) and not isinstance(found, nn.Parameter):
        root.register_buffer(name, found)
    else:
        setattr(root, name, found)


def is_number(node: Node) -> bool:
    return isinstance(value(node), torch.SymInt | torch.SymFloat | torch.SymBool | int | float)


def break_of(module: fx.GraphModule) -> Break | None:
    """Why the capture ended before the code did."""
    found = getattr(module, "compile_subgraph_reason", None)
    if found is None or not found.graph_break:
        return None
    frame = found.user_stack[-1] if found.user_stack else None
    return Break(
        where=f"{short_path(frame.filename)}:{frame.lineno}" if frame else "",
        code=(frame.line or "").strip() if frame else "",
        reason=reason_in_words(str(found.reason)),
    )


def reason_in_words(reason: str) -> str:
    """torch's reason without its hints; a jump is named for what it is to a reader."""
    if reason.startswith("generic_jump"):
        return "the branch depends on the value of a tensor"
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    explained = [line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")]
    return ": ".join([*lines[:1], *explained[:1]])[:300]
