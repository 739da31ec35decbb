"""A functional ExportedProgram as a Graph, without what only the exporter needs."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx import Node

from qcompiler.errors import TraceError
from qcompiler.ir.edit import normalize_arguments
from qcompiler.ir.graph import Graph, Signature
from qcompiler.ir.program import argument_names


def lift(program: ExportedProgram, result: Any) -> Graph:
    """Turn lifted parameters back into constants and strip what only the exporter needs.

    `result` is the pytree spec of what the model returns.
    """
    signature = program.graph_signature
    attributes = (
        dict(signature.inputs_to_parameters)
        | dict(signature.inputs_to_buffers)
        | dict(signature.inputs_to_lifted_tensor_constants)
    )
    held = {**program.constants, **dict(program.named_buffers()), **program.state_dict}
    graph, mapping = fx.Graph(), dict[Node, Node]()
    tensors: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        if node.op == "output":
            graph.output(fx.map_arg(list(node.args[0]), mapping.__getitem__))
            continue
        if node.op == "placeholder" and node.name in attributes:
            target = attributes[node.name]
            tensors[target] = held[target].detach()
            mapping[node] = graph.create_node("get_attr", target, name=target.replace(".", "_"))
        elif node.op == "call_function" and not is_size_check(node):
            refuse_higher_order(node)
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
            normalize_arguments(mapping[node])
        elif node.op == "placeholder":
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
        mapping_meta(node, mapping)
    return Graph(
        fx=graph,
        tensors=tensors,
        stage="traced",
        signature=Signature(
            inputs=tuple(n.name for n in graph.nodes if n.op == "placeholder"),
            in_spec=program.call_spec.in_spec,
            out_spec=result,
            argument_names=argument_names(program),
        ),
    )


def mapping_meta(node: Node, mapping: dict[Node, Node]) -> None:
    if node in mapping:
        mapping[node].meta = dict(node.meta)


def is_size_check(node: Node) -> bool:
    """Runtime assertions about symbolic sizes; the compiled call checks its inputs itself."""
    return not node.users and any(word in str(node.target) for word in ("assert", "sym_constrain"))


def refuse_higher_order(node: Node) -> None:
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise TraceError(
            f"the model uses the control-flow operator '{node.target}'",
            node=node.name,
            why="a graph is straight-line code",
            fix="move the branch out of the model and compile the parts",
        )
