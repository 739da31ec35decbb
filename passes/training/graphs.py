"""Editing torch.fx graphs of ATen ops, where every value carries what it is on fake tensors."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree


def duplicate(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph again, to be changed; what its nodes tell of themselves is kept."""
    graph = fx.Graph()
    copies: dict[Node, Node] = {}
    results = graph.graph_copy(module.graph, copies)
    (old,) = module.graph.find_nodes(op="output")
    graph.output(results).meta.update(old.meta)
    return fx.GraphModule(module, graph)


def called(graph: fx.Graph, target: Any, *args: Any) -> Node:
    """A call at the point of insertion."""
    node = graph.call_function(target, args)
    evaluate(node)
    return node


def evaluate(node: Node) -> None:
    """Give a call the value that it has on fake tensors; that of a view shares its storage."""
    node.meta["val"] = result(node)


def result(node: Node) -> Any:
    """What a call gives on fake tensors."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda arg: arg.meta["val"])
    assert callable(node.target)
    mode = detect_fake_mode([args])
    with mode or nullcontext(), torch.no_grad():
        value = node.target(*args, **kwargs)

    def faked(x: Tensor) -> Tensor:
        return x if mode is None or isinstance(x, FakeTensor) else mode.from_tensor(x)

    return pytree.tree_map_only(Tensor, faked, value)  # the state of a generator comes as it is


def evaluate_all(graph: fx.Graph) -> None:
    """Compute the values of all calls anew, on fake tensors."""
    for node in graph.nodes:
        if node.op == "call_function":
            evaluate(node)


def inlined(graph: fx.Graph, function: Callable[..., Any], *args: Any, **options: Any) -> Node:
    """The ATen ops of a torch function with one result, at the point of insertion."""
    nodes = [arg for arg in args if isinstance(arg, Node)]

    def of_nodes(*values: Any) -> Any:
        given = iter(values)
        return function(*(next(given) if isinstance(arg, Node) else arg for arg in args), **options)

    values = [node.meta["val"] for node in nodes]
    with detect_fake_mode(values) or nullcontext():
        traced = make_fx(of_nodes)(*values)
    copies = dict(zip(traced.graph.find_nodes(op="placeholder"), nodes, strict=True))
    result = graph.graph_copy(traced.graph, copies)
    assert isinstance(result, Node)
    return result


def placeholder(graph: fx.Graph, like: Node, name: str) -> Node:
    """An input at the point of insertion, by a name that nothing else in the graph has, and its target too.

    A target that is taken would make the generated code overwrite another argument, silently. The graph adds
    a number to a name that any node had before, also one that was erased.
    """
    taken = {node.name for node in graph.nodes} | {str(node.target) for node in graph.nodes}
    node = graph.placeholder(name)
    while node.name in taken:
        graph.erase_node(node)
        name += "_"
        node = graph.placeholder(name)
    node.target = node.name
    node.meta.update(like.meta)
    return node


def last_use(node: Node) -> Node:
    """The last that reads a value, or itself; results do not count."""
    last: Node = max((user for user in node.users if user.op != "output"), default=node)
    return last
