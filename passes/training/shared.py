"""One memory crosses once, however many views of it backward reads.

fw: x, x.transpose(1, 2), both cross    -->    fw: x crosses
bw: use(x), use(xT)                            bw: use(x), use(as_strided(x))        exact

As they are, two views take no more than one, since they lie in one storage; stored in few bits each would be
stored for itself. The result of fused attention is such a value: attention's own backward reads it by heads,
and the gradient of the projection behind it by rows.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.passes.training.graphs import called
from qcompiler.passes.training.halves import Halves

aten = torch.ops.aten


def share(halves: Halves) -> None:
    """Let views of what crosses whole be made in backward; both graphs are changed."""
    graph = halves.backward.graph
    groups: dict[int, list[Node]] = {}
    for value in halves.crossing:
        if value.op != "placeholder":
            groups.setdefault(memory(value)._cdata, []).append(value)
    for values in groups.values():
        whole = next(filter(is_whole, values), None)
        if whole is None:
            continue
        for value in values:
            if value is whole or fake(value).dtype != fake(whole).dtype:
                continue
            arrival, given = halves.received(value), halves.received(whole)
            with graph.inserting_before(first_call(graph.nodes)):
                view = called(graph, aten.as_strided.default, given, *layout(fake(value)))
            arrival.replace_all_uses_with(view)
            halves.drop(value)
    halves.tidy()


def is_whole(value: Node) -> bool:
    """Whether a value is all of its storage, row by row."""
    x = fake(value)
    known = all(isinstance(length, int) for length in x.shape)
    return known and x.is_contiguous() and x.nbytes == memory(value).nbytes()


def layout(x: Tensor) -> tuple[list[int], list[int], int]:
    """How a view lies in its storage."""
    return list(x.shape), list(x.stride()), int(x.storage_offset())


def first_call(nodes: Iterable[Node]) -> Node:
    return next(node for node in nodes if node.op != "placeholder")


def fake(value: Node) -> Tensor:
    x: Tensor = value.meta["val"]
    return x


def memory(value: Node) -> torch.UntypedStorage:
    return fake(value).untyped_storage()
