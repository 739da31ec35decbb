"""The key of the draws in a graph: one node for each device, until it becomes an input."""

import torch
from torch import fx
from torch.fx import Node

from qcompiler.ir import storage as _  # noqa: F401 - registers noise_key
from qcompiler.passes.training.graphs import called
from qcompiler.passes.training.halves import Halves


def noise_key(graph: fx.Graph, device: torch.device) -> Node:
    """The key of the draws on a device, one node in each graph; before everything that is computed."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.qcompiler.noise_key.default):
        if node.args[0] == device:
            found: Node = node
            return found
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        return called(graph, torch.ops.qcompiler.noise_key.default, device)


def carry_keys(halves: Halves) -> None:
    """Let backward draw by the key of its own forward pass: the key crosses; both graphs are changed."""
    graph = halves.backward.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.qcompiler.noise_key.default):
        (given,) = halves.hand_over([noise_key(halves.forward.graph, node.args[0])])
        node.replace_all_uses_with(given)
        graph.erase_node(node)
    halves.finish()
