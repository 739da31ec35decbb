"""Read a quantized graph as kernels: an analysis that finds every op that computes on codes.

    q -> dq -> anchor -> chain -> q       one Region, executed by one integer kernel

The reference computes regions with integer arithmetic, and the lowering contract expects them to run so.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.fx import Node

from qcompiler.ir import Graph, arguments
from qcompiler.passes.fuse import absorbed, residual_of
from qcompiler.target import KernelRow, Target

qc = torch.ops.qcompiler


@dataclass(frozen=True, kw_only=True)
class Region:
    """One integer kernel in a quantized graph.

    `operands` are the dequantize nodes it reads codes through, `residual` is another, of the tensor that is
    added to its result; `result` is the quantize node that its
    codes leave by, or the float value itself where the kernel returns float.
    """

    anchor: Node
    chain: tuple[Node, ...]
    row: KernelRow
    operands: tuple[Node, ...]
    weight: Node | None
    bias: Node | None
    residual: Node | None
    result: Node
    returns_codes: bool


def partition(graph: Graph, target: Target) -> Mapping[Node, Region]:
    """Result node -> region, in execution order."""
    regions: dict[Node, Region] = {}
    for node in graph.fx.nodes:
        row = target.row(node) if node.op == "call_function" else None
        region = region_at(node, row) if row is not None and row.formula != "move" else None
        if region is not None:
            regions[region.result] = region
    return regions


def region_at(anchor: Node, row: KernelRow) -> Region | None:
    """The region around an op, or None if it computes in float."""
    given = arguments(anchor)
    operands = operand_nodes(given, row)
    weight = given.get(row.weight) if row.weight else None
    bias = given.get(row.bias) if row.bias else None
    reads = [*operands, *([weight] if row.weight else [])]
    if not reads or not all(is_integer(node) for node in reads):
        return None
    chain = absorbed(anchor, row)
    residual = residual_of(anchor, chain)
    if residual is not None and not is_integer(residual):
        return None
    last = chain[-1] if chain else anchor
    (reader,) = last.users if len(last.users) == 1 else (None,)
    returns_codes = reader is not None and reader.target is qc.quantize.default
    if not returns_codes and row.output != "optional":
        return None
    return Region(
        anchor=anchor,
        chain=chain if returns_codes else (),
        row=row,
        operands=tuple(operands),
        residual=residual if returns_codes else None,
        weight=weight,
        bias=bias,
        result=reader if returns_codes and reader is not None else anchor,
        returns_codes=returns_codes,
    )


def operand_nodes(given: Mapping[str, object], row: KernelRow) -> list[Node]:
    found: list[Node] = []
    for name in row.operands:
        argument = given.get(name)
        found.extend(argument if isinstance(argument, list | tuple) else [argument])  # type: ignore[list-item]
    return found


def is_integer(node: object) -> bool:
    """Whether a value is the decoding of integer codes with one scale per tensor or channel."""
    if not isinstance(node, Node) or node.target is not qc.dequantize.default:
        return False
    given = arguments(node)
    return "int" in given["format"] and not given["block"]
