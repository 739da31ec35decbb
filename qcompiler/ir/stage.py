"""What must hold of a graph at each stage, as data; the pipeline checks it between passes.

traced --CANONICAL--> canonical --materialize--> quantized
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import Node

from qcompiler.errors import GraphError
from qcompiler.ir.edit import arguments
from qcompiler.ir.graph import Graph
from qcompiler.ir.spec import is_float, label, spec, value

Check = Callable[[Graph, Node], str | None]


@dataclass(frozen=True, kw_only=True)
class Invariant:
    """A property of every node; `check` returns the sentence that says how a node breaks it."""

    name: str
    check: Check


def has_spec(graph: Graph, node: Node) -> str | None:
    return None if node.op == "output" or value(node) is not None else "it has no TensorSpec"


def constants_exist(graph: Graph, node: Node) -> str | None:
    missing = node.op == "get_attr" and str(node.target) not in graph.tensors
    return f"it reads the constant '{node.target}', which the graph does not hold" if missing else None


def is_pure(graph: Graph, node: Node) -> str | None:
    target = node.target
    mutable = isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
    return f"{target} writes to its input" if mutable else None


def is_call(graph: Graph, node: Node) -> str | None:
    allowed = node.op in ("placeholder", "get_attr", "call_function", "output")
    return None if allowed else f"a '{node.op}' node may not stand in a graph"


def is_lowered_to_inference(graph: Graph, node: Node) -> str | None:
    name = str(node.target)
    leftover = any(word in name for word in ("aten.dropout", "batch_norm_legit_no_training", "aten.alias"))
    return f"{name} should have been removed" if leftover else None


def pair_is_typed(graph: Graph, node: Node) -> str | None:
    """Codes and their zero point share one storage type; only dequantize reads codes as numbers."""
    if node.target is not torch.ops.qcompiler.dequantize.default:
        return None
    given = arguments(node)
    codes, zero = spec(given["q"]), spec(given["zero_point"])
    if codes is None or zero is None or codes.dtype != zero.dtype:
        return f"its codes are {codes} but its zero point is {zero}"
    return None


def computes_on_floats(graph: Graph, node: Node) -> str | None:
    """Arithmetic happens between dequantize and quantize, so its tensor results are float."""
    arithmetic = any(word in str(node.target) for word in ("aten.conv", "aten.linear", "aten.matmul"))
    return "its result is not a float tensor" if arithmetic and not is_float(node) else None


ALWAYS = (
    Invariant(name="pure", check=is_pure),
    Invariant(name="calls only", check=is_call),
    Invariant(name="constants exist", check=constants_exist),
    Invariant(name="typed", check=has_spec),
)

STAGES: dict[str, tuple[Invariant, ...]] = {
    "traced": ALWAYS,
    "canonical": (*ALWAYS, Invariant(name="inference form", check=is_lowered_to_inference)),
    "quantized": (
        *ALWAYS,
        Invariant(name="inference form", check=is_lowered_to_inference),
        Invariant(name="typed codes", check=pair_is_typed),
        Invariant(name="float arithmetic", check=computes_on_floats),
    ),
}


def check_stage(graph: Graph) -> None:
    """Raise GraphError for the first node that breaks an invariant of the graph's stage."""
    for node in graph.fx.nodes:
        for invariant in STAGES[graph.stage]:
            problem = invariant.check(graph, node)
            if problem:
                raise GraphError(
                    f"the {graph.stage} graph is malformed ({invariant.name})",
                    node=label(node),
                    why=problem,
                    fix="this is a fault of the pass that ran last; report it with the model",
                )
