"""Graphs that are edited stay what their code says."""

import torch
from torch import Tensor, fx

from qcompiler.passes.training.graphs import placeholder


def test_an_input_overwrites_no_other_whatever_names_there_were() -> None:
    """Of a node that is there, of one that was erased, and one that ends in a number."""
    graph = fx.Graph()
    x, tanh_1 = graph.placeholder("x"), graph.placeholder("tanh_1")
    graph.erase_node(graph.create_node("call_function", torch.neg, (x,), name="gone"))
    with graph.inserting_before(x):
        given = [placeholder(graph, x, name) for name in ("x", "gone", "tanh_1", "tanh")]
    graph.output((*given, x, tanh_1))
    graph.lint()
    assert len({node.target for node in graph.find_nodes(op="placeholder")}) == 6
    inputs = [torch.tensor(float(i)) for i in range(6)]
    found: tuple[Tensor, ...] = fx.GraphModule({}, graph)(*inputs)
    assert [int(value) for value in found] == [0, 1, 2, 3, 4, 5]
