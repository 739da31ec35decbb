"""Storing what crosses in few bits.

    fw: x, last use of x         fw: x, last use of x, packed, bounds = store(x)
    bw: use(x)             -->   bw: use(recall(packed, bounds))

Forward computes what it computed; x dies after its last use there and lives again from its first in backward.
"""

from collections.abc import Mapping
from operator import getitem

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.ir import pooling as _  # noqa: F401 - registers store_taps and recall_taps
from qcompiler.numerics.pooling import Pooling
from qcompiler.passes.training.graphs import called, last_use
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.noise import noise_key
from qcompiler.passes.training.pools import pooling_of

ops = torch.ops.qcompiler

RECALLS = "recalls"  # by which a node of backward tells the value of forward that it brings back


def store(halves: Halves, bits: Mapping[str, int], ordinals: Mapping[str, int]) -> None:
    """Store each named value in so many bits, with the noise of its ordinal; both graphs are changed."""
    for node in halves.crossing:
        if node.name in bits:
            store_value(halves, node, bits[node.name], ordinals[node.name])
    halves.finish()


def store_value(halves: Halves, value: Node, bits: int, ordinal: int) -> None:
    arrival = halves.received(value)
    parts = packed(halves.forward.graph, value, bits, ordinal)
    given = halves.hand_over(parts, instead=value)
    with halves.backward.graph.inserting_before(min(arrival.users)):
        recalled = unpacked(halves.backward.graph, given, value, bits)
    recalled.meta[RECALLS] = value.name
    arrival.replace_all_uses_with(recalled)
    halves.backward.graph.erase_node(arrival)


def packed(graph: fx.Graph, value: Node, bits: int, ordinal: int) -> list[Node]:
    """What crosses for a value; made after its last use, so that it does not outlive that."""
    fake: Tensor = value.meta["val"]
    if fake.dtype.is_floating_point:
        key = noise_key(graph, fake.device)
        with graph.inserting_after(last_use(value)):
            pair = called(graph, ops.store.default, value, key, ordinal, bits)
        with graph.inserting_after(pair):
            bounds = called(graph, getitem, pair, 1)
            return [called(graph, getitem, pair, 0), bounds]
    with graph.inserting_after(last_use(value)):
        if fake.dtype == torch.bool:
            return [called(graph, ops.store_mask.default, value)]
        if (windows := pooling_of(value)) is not None and windows.bits:
            return [called(graph, ops.store_taps.default, value, bits, *geometry(windows))]
        return [called(graph, ops.narrow.default, value, bits)]


def unpacked(graph: fx.Graph, parts: list[Node], value: Node, bits: int) -> Node:
    """The value again, in the shape, stride and type that backward was traced with."""
    like: Tensor = value.meta["val"]
    layout = (list(like.shape), list(like.stride()), like.dtype)
    if like.dtype.is_floating_point:
        return called(graph, ops.recall.default, *parts, bits, *layout)
    if like.dtype == torch.bool:
        return called(graph, ops.recall_mask.default, *parts, *layout)
    if (windows := pooling_of(value)) is not None and windows.bits:
        return called(graph, ops.recall_taps.default, *parts, *geometry(windows), *layout[:2])
    return called(graph, ops.widen.default, *parts, like.dtype)


def geometry(pooling: Pooling) -> list[list[int]]:
    """Map, windows, strides, padding and dilation, as the operators take them."""
    return [
        list(each)
        for each in (pooling.size, pooling.window, pooling.stride, pooling.padding, pooling.dilation)
    ]
