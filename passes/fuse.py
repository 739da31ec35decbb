"""Which ops become one kernel: an analysis from a target's rows and the traits of ops.

anchor (conv, linear, add, ...)  +  a sum with another tensor  +  clamps that its kernel absorbs  =  Group

A sum is taken along where that pays (`profit.py`); clamps cost nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from qcompiler.ir import Graph, arguments, spec
from qcompiler.passes.profit import Fusion, pays, weigh
from qcompiler.rewrite import traits
from qcompiler.target import KernelRow, Target

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Group:
    """One kernel: an anchor op and the chain of ops after it that the kernel absorbs.

    Invariant: every node of the chain is read by the next one alone. `residual` is the other operand of the
    sum in the chain, if there is one, and is computed before the anchor.
    """

    anchor: Node
    chain: tuple[Node, ...]
    row: KernelRow

    @property
    def residual(self) -> Node | None:
        return residual_of(self.anchor, self.chain)

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
        if not pays(sum_of_codes(node, chain, target)):
            chain = ()
        taken.update(chain)
        groups[node] = Group(anchor=node, chain=chain, row=row)
    return groups


def sum_of_codes(anchor: Node, chain: Sequence[Node], target: Target) -> Fusion | None:
    """What a sum in the chain takes there, and as a kernel behind one that rounds its result first.

    Decided here and never later: the sum of its own adds codes, so the plan gives the first result a range.
    """
    if residual_of(anchor, chain) is None:
        return None
    return weigh("sum of codes", anchor, chain[0], target)


def sums_of_codes(graph: Graph, target: Target) -> Iterator[tuple[Node, Fusion]]:
    """Anchor and verdict of every sum that a kernel could take along, whether it does or not."""
    for anchor, group in fuse(graph, target).items():
        found = sum_of_codes(anchor, absorbed(anchor, group.row), target)
        if found is not None:
            yield anchor, found


def absorbed(anchor: Node, row: KernelRow) -> tuple[Node, ...]:
    """The longest chain of single-reader ops behind `anchor` that the kernel absorbs: a sum, then clamps."""
    chain: list[Node] = []
    last = anchor
    while len(last.users) == 1:
        (reader,) = last.users
        is_sum = row.adds and not chain and addend(anchor, reader) is not None
        is_clamp = row.absorbs and traits(reader) & row.absorbs and starts_at_zero(reader)
        if not is_sum and not is_clamp:
            break
        chain.append(reader)
        last = reader
    return tuple(chain)


def residual_of(anchor: Node, chain: Sequence[Node]) -> Node | None:
    return addend(anchor, chain[0]) if chain else None


def addend(anchor: Node, reader: Node) -> Node | None:
    """What `reader` adds to the result of `anchor`, if it is a tensor like it that is computed before."""
    if reader.target is not aten.add.Tensor or arguments(reader)["alpha"] != 1:
        return None
    others = [operand for operand in reader.args if operand is not anchor]
    if len(others) != 1 or not isinstance(others[0], Node) or not others[0] < anchor:
        return None
    one, other = spec(anchor), spec(others[0])
    alike = one is not None and other is not None and list(map(str, one.shape)) == list(map(str, other.shape))
    return others[0] if alike else None


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
