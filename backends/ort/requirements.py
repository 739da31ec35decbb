"""What a graph asks of ONNX Runtime: opset, optimization level and the fusions to leave out."""

import torch

from qcompiler.backends.ort.session import HIDING_FUSIONS, SLOW_FUSIONS, Settings
from qcompiler.errors import LoweringError
from qcompiler.ir import Graph, arguments
from qcompiler.passes.heads import is_attention
from qcompiler.target import Target

DEFAULT_OPSET = 21
ATTENTION_OPSET = 23  # the first that has Attention as one operator
GROUPS_OPSET = 21  # the first whose DequantizeLinear takes one scale per group
OPSETS = (18, 23)  # what torch's exporter writes and ONNX Runtime loads
aten = torch.ops.aten
qc = torch.ops.qcompiler


def formats(graph: Graph) -> set[str]:
    """The formats that a graph's dequantize nodes read."""
    return {str(arguments(node)["format"]) for node in graph.fx.nodes if node.target is qc.dequantize.default}


def settings_for(graph: Graph, *, threads: int | None = None) -> Settings:
    """FP8 loads at the basic level only: above it, fusions pick kernels that reject the type."""
    level = "basic" if any(name.startswith("float8") for name in formats(graph)) else "all"
    hiding = HIDING_FUSIONS if has_weight_only(graph) else ()
    return Settings(threads=threads, level=level, disabled=(*SLOW_FUSIONS, *hiding))


def has_weight_only(graph: Graph) -> bool:
    """Whether a linear reads a weight in few bits but a float input."""
    return any(
        node.target is aten.linear.default
        and node.args[1].target is qc.dequantize.default
        and node.args[0].target is not qc.dequantize.default
        for node in graph.fx.nodes
    )


def default_opset(graph: Graph) -> int:
    """The opset that a graph is written in unless another is asked for."""
    by_torch = [node for node in graph.fx.nodes if node.target is aten.scaled_dot_product_attention.default]
    in_one = any(node.target is qc.attention.default for node in graph.fx.nodes)
    return ATTENTION_OPSET if (by_torch or in_one) and all(map(is_attention, by_torch)) else DEFAULT_OPSET


def required_opset(graph: Graph, target: Target) -> int:
    """The lowest opset that holds all formats of a graph; refuses a format that ONNX does not have."""
    unknown = sorted(formats(graph) - set(target.opset))
    if unknown:
        these = "one of these" if target.opset else "a target of this backend"
        raise LoweringError(
            f"format '{unknown[0]}' cannot be written as ONNX",
            why=f"target '{target.name}' exports {', '.join(target.opset) or 'nothing'}",
            fix=f"use {these}, or backend='reference'",
        )
    lowest = max([OPSETS[0], *(target.opset.get(name, OPSETS[0]) for name in formats(graph))])
    return max(lowest, GROUPS_OPSET) if has_groups(graph) else lowest


def has_groups(graph: Graph) -> bool:
    """Whether some weight has one scale per group of its rows."""
    nodes = [node for node in graph.fx.nodes if "dequantize" in str(node.target)]
    return any(arguments(node).get("block") for node in nodes)


def check_opset(graph: Graph, opset: int | None, target: Target) -> None:
    """Refuse an opset that torch's exporter or the formats rule out."""
    lowest = required_opset(graph, target)
    if opset is not None and not lowest <= opset <= OPSETS[1]:
        raise LoweringError(
            f"opset {opset} cannot hold this model",
            why=f"{', '.join(sorted(formats(graph))) or 'float'} needs opset {lowest} to {OPSETS[1]}",
            fix=f"leave opset out (it is {default_opset(graph)}) or choose one in that range",
        )
