"""The sizes of a call: what is symbolic in a graph, as numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.errors import TargetError
from qcompiler.ir import Graph, label, value

Shapes: TypeAlias = tuple[tuple[int, ...], ...]


def shapes_of(graph: Graph, inputs: Sequence[Tensor] = ()) -> Mapping[Node, tuple[int, ...]]:
    """The shapes of all tensors in a call, its symbolic sizes being those of the inputs; or as traced.

    Raises TargetError where a size is known only once a value is.
    """
    sizes: dict[Any, int] = {}
    for node, given in zip(graph.inputs, inputs, strict=bool(inputs)):
        for size, found in zip(value(node).shape, given.shape, strict=True):
            if isinstance(size, torch.SymInt):
                sizes[size.node.expr] = found

    def known(size: Any, node: Node) -> int:
        if not isinstance(size, torch.SymInt):
            return int(size)
        found = size.node.expr.subs(sizes) if sizes else size.node.hint
        if found is None or getattr(found, "free_symbols", None):
            raise TargetError(
                "a size depends on the values of a tensor", node=label(node),
                why="kernels of our own are compiled for sizes", fix="use backend='ort'",
            )  # fmt: skip
        return int(found)

    return {
        node: tuple(known(size, node) for size in held.shape)
        for node in graph.fx.nodes
        if isinstance(held := value(node) if node.op != "output" else None, Tensor)
    }
