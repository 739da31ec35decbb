"""The exact reference: runs every graph with the integer arithmetic that an engine is supposed to do.

Regions run as integer kernels; all other ops run in torch's float32. Slow, and right.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.backends.base import Executed, Execution
from qcompiler.backends.reference.formulas import FORMULAS
from qcompiler.backends.reference.kernels import Call, Codes, Output, weight_only_linear
from qcompiler.ir import Graph, arguments, evaluate, spec
from qcompiler.ir.graph import operator_of
from qcompiler.passes.partition import Region, partition
from qcompiler.plan import Plan
from qcompiler.target import Target, find_target

aten = torch.ops.aten
qc = torch.ops.qcompiler


@dataclass(frozen=True, kw_only=True)
class ReferenceExecutable:
    """A graph with its regions."""

    graph: Graph
    regions: Mapping[Node, Region]
    target: Target

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        return [decoded(result) for result in evaluate(self.graph, inputs, evaluate_node=self.compute)]

    def returned(self, name: str) -> str:
        """The node by whose name a region returns floats to which it adds others; else the node itself."""
        region = self.inside.get(self.graph.by_name[name]) if name in self.graph.by_name else None
        return name if region is None or region.addend is None else region.result.name

    def values(self, inputs: Sequence[Tensor], names: set[str]) -> dict[str, Tensor]:
        """The float values that some nodes stand for on one input; inside a region, of its result."""
        found: dict[str, Tensor] = {}

        def keep(node: Node, value: Any) -> None:
            if node.name not in names or not isinstance(value, Tensor | Codes):
                return
            region = self.inside.get(node)
            if region is not None and region.returns_codes and isinstance(value, Tensor):
                output = output_of(region, self.graph)
                value = Codes(
                    values=value, scale=output.scale, zero_point=output.zero_point, format=output.format
                )
            found[node.name] = decoded(value)

        evaluate(self.graph, inputs, observe=keep, evaluate_node=self.compute)
        return found

    def compute(self, node: Node, args: Any, kwargs: dict[str, Any], values: Mapping[Node, Any]) -> Any:
        region = self.inside.get(node)
        if region is not None and node is region.anchor:
            residual = None if region.residual is None else values[region.residual]
            addend = None if region.addend is None else decoded(values[region.addend])
            result = compute_region(region, self.graph, args, kwargs, residual, addend)
            held = spec(region.result)
            return result if region.returns_codes or held is None else result.to(held.dtype)
        if region is not None:  # the anchor has already returned the codes that leave the region
            return values[region.anchor] if node in region.anchor.users else args[0]
        if node.target is qc.dequantize.default:
            return coded(node, values.__getitem__)
        if (
            node.target is aten.linear.default
            and isinstance(args[1], Codes)
            and not isinstance(args[0], Codes)
        ):
            kernel = self.target.reader_of(args[1].format)
            if kernel is not None:
                block = args[1].block or kernel.default_block
                result = weight_only_linear(*args, bits=kernel.activation_bits, block=block)
                return result.to(args[0].dtype)
        plain = fx.node.map_aggregate((args, kwargs), decoded)
        return operator_of(node)(*plain[0], **plain[1])

    @cached_property
    def inside(self) -> Mapping[Node, Region]:
        """Which region a node belongs to: its anchor, the ops it absorbs, and the quantize it leaves by."""
        return {
            node: region
            for region in self.regions.values()
            for node in (region.anchor, *region.chain, region.result)
        }

    def execution(self, plan: Plan) -> Execution:
        """By definition every region runs as its formula says."""
        anchors = {region.anchor.name for region in self.regions.values()}
        # Few-bit data in float arithmetic (weight-only, FP8) is no region, and is simulated exactly.
        simulated = {entry.kernel for entry in self.target.weight_only} | {"float"}
        as_planned = [layer.node in anchors or layer.kernel in simulated for layer in plan.layers]
        layers = tuple(
            Executed(node=layer.node, kernel="reference", precision=layer.precision if exact else "float")
            for layer, exact in zip(plan.layers, as_planned, strict=True)
        )
        return Execution(layers=layers, kernels={"reference": len(layers)})


class Reference:
    """The backend named "reference"; the graph is all it needs."""

    name = "reference"

    def __init__(self, target: Target | str = "cpu") -> None:
        self.target = find_target(target)

    def lower(self, graph: Graph, *, threads: int | None = None) -> ReferenceExecutable:
        return ReferenceExecutable(graph=graph, regions=partition(graph, self.target), target=self.target)

    def write(self, graph: Graph, folder: Path) -> None:
        return None

    def open(self, graph: Graph, folder: Path, *, threads: int | None = None) -> ReferenceExecutable:
        return self.lower(graph, threads=threads)

    def settings(self, graph: Graph, *, threads: int | None = None) -> dict[str, Any]:
        return {}


def compute_region(
    region: Region,
    graph: Graph,
    args: Any,
    kwargs: dict[str, Any],
    residual: Codes | None,
    addend: Tensor | None = None,
) -> Tensor:
    """Bind a region's operands by argument name and run its formula."""
    schema = region.anchor.target._schema  # type: ignore[union-attr]
    bound = dict(zip([a.name for a in schema.arguments], args, strict=False)) | kwargs
    operands = [
        codes
        for name in region.row.operands
        for codes in (bound[name] if isinstance(bound[name], list | tuple) else [bound[name]])
    ]
    literals = {name: value for name, value in bound.items() if not isinstance(value, Codes)}
    call = Call(
        operands=operands,
        weight=bound[region.row.weight] if region.row.weight else None,
        bias=bound.get(region.row.bias) if region.row.bias else None,
        arguments=literals,
        op=region.anchor.target,  # type: ignore[arg-type]
        output=output_of(region, graph) if region.returns_codes else None,
        residual=residual,
        addend=addend,
    )
    return FORMULAS[region.row.formula](call)


def output_of(region: Region, graph: Graph) -> Output:
    given = arguments(region.result)
    return Output(
        scale=graph.tensors[str(given["scale"].target)],
        zero_point=graph.tensors[str(given["zero_point"].target)],
        format=given["format"],
    )


def coded(decoding: Node, held: Callable[[Node], Any]) -> Codes:
    """What a dequantize node decodes: `held` gives its codes, scale and zero point."""
    given = arguments(decoding)
    return Codes(
        values=held(given["q"]), scale=held(given["scale"]), zero_point=held(given["zero_point"]),
        format=given["format"], axis=given["axis"], block=given["block"], dtype=given["dtype"],
    )  # fmt: skip


def decoded(value: Any) -> Any:
    return value.decoded() if isinstance(value, Codes) else value
