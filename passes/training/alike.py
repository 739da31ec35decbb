"""Values that are alike: those of one place in every layer, which are made alike and read alike.

What is measured of one holds for all, as nearly as a choice of bits needs it: a model of twelve layers has
two hundred values that cross, and some fifteen kinds of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch.fx import Node

from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.joint import VIEWS
from qcompiler.passes.training.saved import Saved

DEPTH = 3  # operators that a value's making is told by


def alike(halves: Halves, values: Sequence[Saved]) -> tuple[tuple[Saved, ...], ...]:
    """The values by kind, in the order in which kinds first occur."""
    nodes = {node.name: node for node in halves.crossing}
    found: dict[Any, list[Saved]] = {}
    for value in values:
        node = nodes[value.name]
        kind = (value.shape, value.dtype, value.bits, made(node), read(halves.received(node)))
        found.setdefault(kind, []).append(value)
    return tuple(tuple(kind) for kind in found.values())


def made(node: Node) -> tuple[Any, ...]:
    """The last operators by which a value came about, along their first operands, with views between."""
    found: list[Any] = []
    while len(found) < DEPTH and node.op == "call_function" and node.all_input_nodes:
        found.append((node.target, *(arg for arg in node.args if isinstance(arg, int))))
        node = node.all_input_nodes[0]
    return tuple(found)


def read(arrival: Node) -> tuple[Any, ...]:
    """By which operators backward reads a value, as which operand, for a result of which shape."""
    return tuple(sorted(map(str, readers(arrival))))


def readers(value: Node) -> Iterator[Any]:
    for reader in value.users:
        if reader.target in VIEWS:
            yield from readers(reader)
        else:
            places = tuple(place for place, arg in enumerate(reader.args) if arg is value)
            yield reader.target, places, getattr(reader.meta.get("val"), "shape", None)
