"""What backward can compute again, instead of its being kept: products, with the cheap operators behind.

x -> mm -> gelu -> mm        keep x alone, and compute the first product and its GELU twice
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx import Node
from torch.utils.checkpoint import CheckpointPolicy

from qcompiler.passes.training.generators import is_random
from qcompiler.passes.training.joint import dependent, tangents
from qcompiler.passes.training.operators import HEAVY


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Products of one operator on operands of one shape, such as those of one place in every layer."""

    operator: str
    shapes: tuple[tuple[int, ...], ...]
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        return f"{len(self.nodes)} {self.operator} of {shapes}"


def kinds(joint: fx.GraphModule) -> tuple[Kind, ...]:
    """The products of forward by kind, in the order in which they first occur."""
    late = dependent(joint.graph, tangents(joint.graph))
    found: dict[Any, list[str]] = {}
    for node in joint.graph.nodes:
        if node.target in HEAVY and node not in late and not is_random(node):
            shapes = tuple(tuple(arg.meta["val"].shape) for arg in node.args if isinstance(arg, Node))
            found.setdefault((node.target.__name__.split(".")[0], shapes), []).append(node.name)
    return tuple(
        Kind(operator=operator, shapes=shapes, nodes=tuple(names))
        for (operator, shapes), names in found.items()
    )


def mark(joint: fx.GraphModule, again: Collection[str], parameters: Sequence[int]) -> None:
    """Tell torch's partitioner to compute these products again, and what is cheap behind them; in place."""
    if not again:
        return
    graph = joint.graph
    late = dependent(graph, tangents(graph))
    inputs = graph.find_nodes(op="placeholder")
    weights = {inputs[position] for position in parameters}
    moving = dependent(graph, (node for node in inputs if node not in weights))
    marked: set[Node] = set()
    for node in graph.nodes:
        if node in late or node.op != "call_function":
            continue
        reads = [read for read in node.all_input_nodes if read in moving]
        follows = (
            reads and node.target not in HEAVY and not is_random(node) and all(r in marked for r in reads)
        )
        if node.name in again or follows:
            marked.add(node)
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
            node.meta["ac_graph_id"] = 0
