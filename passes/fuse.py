"""Which ops become one kernel: an analysis from a target's rows and the traits of ops.

anchor (conv, linear, add, ...)  +  pointwise ops that its kernel absorbs  =  Group
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.fx import Node

from qcompiler.ir import Graph, arguments
from qcompiler.rewrite import traits
from qcompiler.target import KernelRow, Target

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Group:
    """One kernel: an anchor op and the chain of ops after it that the kernel absorbs.

    Invariant: every node of the chain is read by the next one alone.
    """

    anchor: Node
    chain: tuple[Node, ...]
    row: KernelRow

    @property
    def result(self) -> Node:
        return self.chain[-1] if self.chain else self.anchor


def fuse(graph: Graph, target: Target) -> Mapping[Node, Group]:
    """Anchor -> group, in execution order, for every op that the target has a row for."""
    groups: dict[Node, Group] = {}
    taken: set[Node] = set()
    for node in graph.fx.nodes:
        row = target.row(node) if node.op == "call_function" and node not in taken else None
        if row is None:
            continue
        chain = absorbed(node, row)
        taken.update(chain)
        groups[node] = Group(anchor=node, chain=chain, row=row)
    return groups


def absorbed(anchor: Node, row: KernelRow) -> tuple[Node, ...]:
    """The longest chain of single-reader ops behind `anchor` whose traits the kernel absorbs."""
    chain: list[Node] = []
    last = anchor
    while len(last.users) == 1:
        (reader,) = last.users
        if not row.absorbs or not traits(reader) & row.absorbs or not starts_at_zero(reader):
            break
        chain.append(reader)
        last = reader
    return tuple(chain)


def starts_at_zero(clamp: Node) -> bool:
    """max(x, 0) and min(max(x, 0), c), c > 0: the range of codes, whose lowest is 0 = D(z), implies them.

    A clamp with another lower bound would need that bound on the grid of codes, which no range promises.
    """
    given = arguments(clamp)
    match clamp.target:
        case aten.relu.default:
            return True
        case aten.clamp.default:
            highest = given["max"]
            return given["min"] == 0 and (
                highest is None or (isinstance(highest, int | float) and highest > 0)
            )
    return False
