"""What a norm has normalised crosses, and not what it was given.

    n = (x - mean) rstd

    fw: x, mean, rstd cross                       fw: n, rstd cross
    bw: dx, dw, db = back(dy, x, mean, rstd, w)   bw: dn, dw, db = back(dy, n, 0, 1, w);  dx = rstd dn

It is the same in exact numbers. In few bits it is not: groups span rows, and a row of small numbers beside
one of large ones (padding beside words) would have its noise multiplied by its own rstd, which is large. Rows
of n are all of one size. What the norm gives is n w + b, and follows from n (implied.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.passes.training.derivatives import drop_unread
from qcompiler.passes.training.graphs import called, inlined
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.joint import base
from qcompiler.passes.training.saved import is_rounded

aten = torch.ops.aten

NORMALIZED = "normalized"  # by which a norm of forward tells the node of what it has normalised


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Where the backward operator of a norm has its input, its statistics, and which result is dx.

    mean: None where the norm takes none off. rstd: 1 / deviation.
    """

    rstd: int
    given: int = 1
    mean: int | None = None


NORMS: Mapping[Any, Norm] = {
    aten.native_layer_norm_backward.default: Norm(mean=3, rstd=4),
    aten._fused_rms_norm_backward.default: Norm(rstd=3),
}
"""Norms over the last axes, whose statistics are one number for each row."""


def normalized(x: Tensor, rstd: Tensor, mean: Tensor | None = None) -> Tensor:
    """(x - mean) rstd, computed in float32, in the type of x, row by row."""
    centred = exact(x) if mean is None else exact(x) - exact(mean, x.dtype)
    return typed(centred * exact(rstd, x.dtype), x.dtype).contiguous()


def rescaled(dn: Tensor, rstd: Tensor) -> Tensor:
    """rstd dn, in the type of dn."""
    return typed(exact(dn) * exact(rstd, dn.dtype), dn.dtype)


def exact(x: Tensor, beside: torch.dtype | None = None) -> Tensor:
    """In float32. What a norm gives beside half precision may have another type than it says."""
    return x if (beside or x.dtype) == torch.float32 else aten._to_copy(x, dtype=torch.float32)


def typed(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if dtype == torch.float32 else aten._to_copy(x, dtype=dtype)


def normalize(halves: Halves) -> None:
    """Let what norms have normalised cross in the place of their inputs; both graphs are changed."""
    held = {base(node) for node in halves.results[: halves.outputs] if isinstance(node, Node)}
    for node in [node for node in halves.backward.graph.nodes if node.target in NORMS]:
        row = NORMS[node.target]
        values = {arrival: value for value, arrival in halves.arrivals.items()}
        places = (row.given, row.rstd) if row.mean is None else (row.given, row.rstd, row.mean)
        arrivals = [node.args[place] for place in places]
        if all(arrival in values for arrival in arrivals) and len(arrivals[0].users) == 1:
            x, *statistics = (values[arrival] for arrival in arrivals)
            if is_rounded(x) and base(x) not in held and is_norm_of(statistics[0], x):
                cross(node, x, statistics, halves)
    drop_unread(halves)


def is_norm_of(statistic: Node, x: Node) -> bool:
    """Whether a value is a statistic that a norm of x gives."""
    return statistic.target is getitem and statistic.all_input_nodes[0].args[0] is x


def cross(node: Node, x: Node, statistics: Sequence[Node], halves: Halves) -> None:
    """Let n cross for a norm's backward operator, and not x."""
    row, arrival, rstd = NORMS[node.target], halves.received(x), halves.received(statistics[0])
    with halves.forward.graph.inserting_before(max(x, *statistics).next):
        n = inlined(halves.forward.graph, normalized, x, *statistics)
    statistics[0].all_input_nodes[0].meta[NORMALIZED] = n
    (given,) = halves.hand_over([n], instead=x)
    graph = halves.backward.graph
    with graph.inserting_before(node):
        node.update_arg(row.rstd, called(graph, aten.ones_like.default, rstd))
        if row.mean is not None:
            node.update_arg(row.mean, called(graph, aten.zeros_like.default, rstd))
    node.update_arg(row.given, given)
    graph.erase_node(arrival)
    for dn in [user for user in node.users if user.args[1] == 0]:
        readers = [*dn.users]
        with graph.inserting_before(dn.next):
            dx = inlined(graph, rescaled, dn, rstd)
        for reader in readers:
            reader.replace_input_with(dn, dx)
