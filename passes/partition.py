"""Read a quantized graph as kernels: an analysis that finds every op that computes on codes.

    q -> dq -> anchor -> chain -> q       one Region, executed by one integer kernel

The reference computes regions with integer arithmetic, and the lowering contract expects them to run so.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from qcompiler.ir import Graph, arguments, spec
from qcompiler.passes.fuse import absorbed, addend, residual_of
from qcompiler.passes.profit import Fusion, pays, weigh
from qcompiler.target import KernelRow, Target

qc = torch.ops.qcompiler


@dataclass(frozen=True, kw_only=True)
class Region:
    """One integer kernel in a quantized graph.

    `operands` are the dequantize nodes it reads codes through, `residual` is another, of the tensor that is
    added to its result; `result` is the quantize node that its codes leave by, or the float value itself
    where the kernel returns float. `addend` is a float tensor that it adds to such a result.
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
    addend: Node | None = None


def partition(graph: Graph, target: Target) -> Mapping[Node, Region]:
    """Result node -> region, in execution order."""
    regions: dict[Node, Region] = {}
    for node in graph.fx.nodes:
        row = target.row(node) if node.op == "call_function" else None
        found = region_at(node, row, target) if row is not None and row.formula != "move" else None
        if found is not None:
            region = with_addend(found, target)
            regions[region.result] = region
    return regions


def region_at(anchor: Node, row: KernelRow, target: Target) -> Region | None:
    """The region around an op, or None if it computes in float."""
    given = arguments(anchor)
    operands = operand_nodes(given, row)
    weight = given.get(row.weight) if row.weight else None
    bias = given.get(row.bias) if row.bias else None
    reads = [*operands, *([weight] if row.weight else [])]
    if not reads or not all(are_codes(node, target) for node in reads):
        return None
    chain = absorbed(anchor, row)
    residual = residual_of(anchor, chain)
    if residual is not None and not are_codes(residual, target):
        return None
    last = chain[-1] if chain else anchor
    (reader,) = last.users if len(last.users) == 1 else (None,)
    # Behind a range that is taken at run time there is no multiplier yet, and the bias is one of floats.
    known = all(arguments(operand)["scale"].op == "get_attr" for operand in operands)
    returns_codes = (
        known and row.output != "never" and reader is not None and reader.target is qc.quantize.default
    )
    if not returns_codes and row.output not in ("optional", "never"):
        return None
    if not returns_codes or reader is None:
        return Region(
            anchor=anchor, chain=(), row=row, operands=tuple(operands), weight=weight, bias=bias,
            residual=None, result=anchor, returns_codes=False,
        )  # fmt: skip
    return Region(
        anchor=anchor, chain=chain, row=row, operands=tuple(operands), weight=weight, bias=bias,
        residual=residual, result=reader, returns_codes=True,
    )  # fmt: skip


def with_addend(region: Region, target: Target) -> Region:
    """The region with the sum behind its float result, where the kernel computes that as well.

    One rounding less than apart: so it is weighed by what the target says, which the reference knows too,
    and by no measurement.
    """
    reader = float_sum(region)
    if reader is None or not pays(weigh("sum of floats", region.anchor, reader, target)):
        return region
    return replace(region, chain=(reader,), result=reader, addend=addend(region.anchor, reader))


def float_sum(region: Region) -> Node | None:
    """The one reader of a float result, if it is a sum that the kernel could take along."""
    readers = list(region.anchor.users)
    if region.returns_codes or not region.row.adds_floats or len(readers) != 1:
        return None
    return readers[0] if addend(region.anchor, readers[0]) is not None else None


def sums_of_floats(regions: Iterable[Region], target: Target) -> Iterator[Fusion]:
    """The verdict on every sum behind a float result, whether it is taken along or not."""
    for region in regions:
        reader = float_sum(region)
        found = None if reader is None else weigh("sum of floats", region.anchor, reader, target)
        if found is not None:
            yield found


def operand_nodes(given: Mapping[str, object], row: KernelRow) -> list[Node]:
    found: list[Node] = []
    for name in row.operands:
        argument = given.get(name)
        found.extend(argument if isinstance(argument, list | tuple) else [argument])  # type: ignore[list-item]
    return found


def are_codes(node: object, target: Target) -> bool:
    """Whether a value is the decoding of codes that are multiplied as they are.

    Integers, or what the target has kernels for, with one scale per tensor, channel, row or block.
    """
    if not isinstance(node, Node) or node.target is not qc.dequantize.default:
        return False
    given, found = arguments(node), spec(node)
    assert found is not None
    by_row = target.range_of == "row" and given["axis"] == -1 and given["block"] == found.shape[-1]
    by_block = given["block"] == target.dynamic_blocks.get(given["format"])
    return target.computes(given["format"]) and (by_row or by_block or not given["block"])
