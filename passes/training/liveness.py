"""The most memory that a training step needs at once, by walking through both graphs.

    live(t) = bytes of the storages that exist at node t        peak = max over t

A storage exists from the node that makes it to the last that reads it, through whatever view; what crosses
exists from forward into backward. Parameters, inputs, results and gradients are not counted: they are there,
or have to be, whatever the plan. What an operator needs inside of itself is not known.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from qcompiler.passes.training.halves import Halves


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Bytes at the worst moment, the node where that is, and the bytes that cross into backward."""

    bytes: int
    at: str
    crossing: int


def peak(halves: Halves) -> Peak:
    """The peak of a step that runs both halves in the order of their graphs."""
    forward, backward = halves.forward.graph, halves.backward.graph
    given = storages(forward.find_nodes(op="placeholder"))
    results = storages(halves.results[: halves.outputs])
    crossing = [node for node in halves.crossing if not storages([node]).keys() & (given | results).keys()]
    held = storages(map(halves.received, crossing))
    (output,) = backward.find_nodes(op="output")
    gradients = storages(output.all_input_nodes)
    free = {key: 0 for key in storages(backward.find_nodes(op="placeholder")) if key not in held}
    worst = max(walk(forward, {}, given | results), walk(backward, held, gradients | free))
    return Peak(bytes=worst[0], at=worst[1], crossing=sum(held.values()))


def walk(graph: fx.Graph, held: dict[int, int], free: dict[int, int]) -> tuple[int, str]:
    """(bytes, node) of the worst moment; `held` exist from the start, `free` are never counted."""
    last: dict[int, Node] = {}
    for node in graph.nodes:
        for key in storages([node, *node.all_input_nodes]):
            last[key] = node
    live = {key: count for key, count in held.items() if key not in free}
    total = sum(live.values())
    worst = (total, "the start")
    for node in graph.nodes:
        own = storages([node])
        for key, count in own.items() if node.op == "call_function" else ():
            if key not in live and key not in free:
                live[key] = count
                total += count
        worst = max(worst, (total, node.name), key=lambda moment: moment[0])
        for key in storages([node, *node.all_input_nodes]):
            if last[key] is node:
                total -= live.pop(key, 0)
    return worst


def storages(values: Iterable[Any]) -> dict[int, int]:
    """Bytes of every storage that some values lie in."""
    found = {}
    for node in values:
        for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(node, Node) else ():
            if isinstance(leaf, Tensor):
                memory = leaf.untyped_storage()
                found[memory._cdata] = memory.nbytes()
    return found
