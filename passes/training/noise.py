"""What a graph has from outside, the key of its draws and the magnitudes before: nodes, and later inputs."""

from typing import Any

import torch
from torch import fx
from torch.fx import Node

from qcompiler.ir import scales as _scales  # noqa: F401 - registers seen_before
from qcompiler.ir import storage as _storage  # noqa: F401 - registers noise_key
from qcompiler.passes.training.graphs import called
from qcompiler.passes.training.halves import Halves

KEY, SEEN = torch.ops.qcompiler.noise_key.default, torch.ops.qcompiler.seen_before.default
SOURCES = (KEY, SEEN)


def noise_key(graph: fx.Graph, device: torch.device) -> Node:
    """The key of the draws on a device, one node in each graph; before everything that is computed."""
    return source(graph, KEY, device)


def source(graph: fx.Graph, target: Any, *args: Any) -> Node:
    """A node that stands for an input of a later stage, one in each graph for the same arguments."""
    for node in graph.find_nodes(op="call_function", target=target):
        if node.args == args:
            found: Node = node
            return found
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        return called(graph, target, *args)


def carry_keys(halves: Halves) -> None:
    """Let backward have what its own forward pass had from outside: it crosses; both graphs are changed."""
    graph = halves.backward.graph
    for target in SOURCES:
        for node in graph.find_nodes(op="call_function", target=target):
            (given,) = halves.hand_over([source(halves.forward.graph, target, *node.args)])
            node.replace_all_uses_with(given)
            graph.erase_node(node)
    halves.tidy()
