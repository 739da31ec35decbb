"""Linears of floats with a weight of few bits in groups, and that weight as kernels read it.

    x, dequantize(codes, scale, zero_point)  ->  linear        a region without operands

A weight with one scale for each output is one in groups of the same scale.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.triton.layouts import LAYOUTS, ROWS, SCALES, Layout, Weight, pack
from qcompiler.backends.triton.ops.alignment import even
from qcompiler.ir import Graph, arguments, spec
from qcompiler.numerics import IntFormat, parse_format
from qcompiler.passes.partition import Region
from qcompiler.target import Target

aten = torch.ops.aten
qc = torch.ops.qcompiler

STORED = torch.bfloat16  # scales, whose range is that of float32


def tensor(name: Any, graph: Graph) -> Tensor:
    """A constant by its name, or by the node that gets it."""
    return graph.tensors[str(name.target) if isinstance(name, Node) else str(name)]


def few_bit_region(node: Node, target: Target) -> Region | None:
    """A linear whose weight is in a format that a product of floats reads; None for all else."""
    row = target.row(node) if node.target is aten.linear.default else None
    weight = arguments(node)["weight"] if row is not None else None
    if row is None or not isinstance(weight, Node) or weight.target is not qc.dequantize.default:
        return None
    if target.reader_of(arguments(weight)["format"]) is None:
        return None
    return Region(
        anchor=node, chain=(), row=row, operands=(), weight=weight, bias=arguments(node)["bias"],
        residual=None, result=node, returns_codes=False,
    )  # fmt: skip


def few_bit_obstacles(region: Region, graph: Graph) -> Iterator[str]:
    """Why no op reads such a weight, in sentences; none where one does."""
    x, weight = spec(arguments(region.anchor)["input"]), arguments(region.weight)  # type: ignore[arg-type]  # it has one
    if x is None or x.dtype not in SCALES:
        yield "its input is neither bfloat16 nor float16; convert the model to one of them"
    if any(weight[name].op != "get_attr" for name in ("q", "scale", "zero_point")):
        yield "its weight is no constant; keep it in float by an override"
        return
    (N, K), layout = tensor(weight["q"], graph).shape, layout_of_weight(region, graph)
    if layout.name not in LAYOUTS or K % layout.group or N % ROWS:
        yield (
            f"a weight {[N, K]} in {weight['format']} and groups of {weight['block'] or 'a row'} has no"
            f" layout; outputs are taken {ROWS} at a time, and groups are {', '.join(LAYOUTS)}"
        )
    scale = tensor(weight["scale"], graph).float()
    small = torch.finfo(STORED).smallest_normal
    if not bool(((scale.to(STORED).float() == scale) & (scale >= small) & scale.isfinite()).all()):
        yield "its scales are no bfloat16 numbers; plan it for this target"


def layout_of_weight(region: Region, graph: Graph) -> Layout:
    """Of its groups, or the longest that divide a row with one scale."""
    given = arguments(region.weight)  # type: ignore[arg-type]  # a region of few bits has one
    format, inputs = parse_format(given["format"]), tensor(given["q"], graph).shape[1]
    assert isinstance(format, IntFormat)
    fitting = [layout.group for layout in LAYOUTS.values() if inputs % layout.group == 0]
    return Layout(bits=format.bits, group=given["block"] or max(fitting, default=inputs))


def has_zeros(region: Region, graph: Graph) -> bool:
    """Whether zero points are elsewhere than in the middle, where those of a symmetric weight are."""
    given, layout = arguments(region.weight), layout_of_weight(region, graph)  # type: ignore[arg-type]  # as above
    format = parse_format(given["format"])
    assert isinstance(format, IntFormat)
    zeros = tensor(given["zero_point"], graph).to(torch.int16) - format.qmin
    return bool((zeros != layout.middle).any())


def weight_of(region: Region, graph: Graph) -> Weight:
    """s (q - z)  -->  s (u - z'), u = q - qmin: codes and zero points in place, scales for each group.

    Without zeros where all are in the middle, as those of a symmetric weight are.
    """
    given, layout = arguments(region.weight), layout_of_weight(region, graph)  # type: ignore[arg-type]  # as above
    format = parse_format(given["format"])
    assert isinstance(format, IntFormat)
    codes, zeros = (
        (tensor(given[name], graph).to(torch.int16) - format.qmin).to(torch.uint8)
        for name in ("q", "zero_point")
    )
    groups = (len(codes), codes.shape[1] // layout.group)
    scales, zeros = (
        even(part.reshape(len(codes), -1).expand(groups).contiguous())  # a file may begin anywhere
        for part in (tensor(given["scale"], graph).to(STORED), zeros)
    )
    return Weight(
        codes=pack(codes, layout), scales=scales,
        zeros=zeros if has_zeros(region, graph) else None, layout=layout.name,
    )  # fmt: skip


def stacked(weights: Sequence[Weight]) -> Weight:
    """The rows of one above those of the next; all are of one layout, with zero points or without."""
    first = weights[0]
    zeros = [weight.zeros for weight in weights if weight.zeros is not None]
    return replace(
        first,
        codes=torch.cat([weight.codes for weight in weights]),
        scales=torch.cat([weight.scales for weight in weights]),
        zeros=torch.cat(zeros) if zeros else None,
    )
