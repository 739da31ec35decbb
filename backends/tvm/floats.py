"""Ops on floats that have kernels of our own: a table from ops to families.

    node, float operands as rows  -->  calls of functions, result as rows; or False: torch computes it

A value [.., C] lies as rows on a plane of float32, a row a pixel.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.gemv import Gemv, by_panel, gemv, pack, rounded
from qcompiler.backends.tvm.plane import Plane
from qcompiler.ir import Graph, arguments, spec
from qcompiler.numerics import IntFormat, parse_format
from qcompiler.target import Target

aten = torch.ops.aten
qc = torch.ops.qcompiler
Make = Callable[[str], Any]


class Rows(Protocol):
    """What a family asks of the lowering."""

    isa: Isa
    target: Target
    stores: dict[str, Any]
    kernels: dict[str, str]
    constants: dict[str, Any]

    def rows(self, node: Node) -> str:
        """The store that holds a float value as rows."""

    def known(self, node: Node, *, before: Node) -> bool:
        """Whether a value is floats that can lie as rows, and is computed before a node."""

    def float_result(self, node: Node) -> Plane:
        """Memory for what a node returns, by its name."""

    def temporary(self, name: str, plane: Plane, dtype: str) -> None: ...

    def tensor(self, node: Any) -> Tensor: ...

    def call(
        self, node: Node, description: Any, make: Callable[[str], Any], names: tuple[str, ...]
    ) -> None: ...


def linear(places: Rows, node: Node) -> bool:
    """Weights of few bits; what is added to the result alone is added by the kernel."""
    given = arguments(node)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    if weight.target is not qc.dequantize.default or x.target is qc.dequantize.default:
        return False
    coded = arguments(weight)
    format = parse_format(coded["format"])
    row = next((row for row in places.target.weight_only if row.format == coded["format"]), None)
    held = None if bias is None else bias.op == "get_attr"
    if row is None or not isinstance(format, IntFormat) or held is False or not places.known(x, before=node):
        return False
    result, added = sum_behind(places, node)
    source = places.rows(x)
    zeros = places.tensor(coded["zero_point"])
    block, of_its_own = coded["block"] or row.default_block, bool(zeros.any())
    scale = places.tensor(coded["scale"]).float()
    layer = Gemv(
        x=places.stores[source].plane, y=places.float_result(result),
        residual=None if added is None else places.stores[places.rows(added)].plane,
        bits=8 if format.bits > 4 else 4, block=block, per_column=not coded["block"],
        zero=None if of_its_own else -min(format.qmin, 0),
        scales="float16" if torch.equal(scale, scale.half().float()) else "float32", bias=bias is not None,
    )  # fmt: skip
    codes = places.tensor(coded["q"]).numpy().astype(np.int16) - min(format.qmin, 0)
    constants = {
        "weights": pack(layer, codes.astype(np.uint8), places.isa),
        "steps": by_panel(scale.numpy().reshape(layer.outputs, -1).astype(layer.scales), places.isa),
    }
    if of_its_own:
        moved = zeros.numpy().astype(np.int16) - min(format.qmin, 0)
        full = np.broadcast_to(moved.reshape(layer.outputs, -1), (layer.outputs, layer.blocks))
        constants["zeros"] = by_panel(full.astype(np.uint8), places.isa)
    if layer.takes_bias:
        full = np.zeros(layer.outputs, np.float32) if bias is None else places.tensor(bias).numpy()
        constants["bias"] = by_panel(full[:, None], places.isa)
    named = {f"{node.name}.{kind}": array for kind, array in constants.items()}
    places.constants.update(named)
    between = encoded(places, node, source, layer)
    residual = () if added is None else (places.rows(added),)
    places.call(
        node, ("gemv", layer), lambda name: gemv(layer, places.isa, name),
        (*between, *named, *residual, result.name),
    )  # fmt: skip
    places.kernels[node.name] = row.kernel
    return True


def sum_behind(places: Rows, node: Node) -> tuple[Node, Node | None]:
    """The one reader of a result that only adds something known to it, and what it adds."""
    (reader,) = node.users if len(node.users) == 1 else (None,)
    if reader is None or reader.target is not aten.add.Tensor or arguments(reader)["alpha"] != 1:
        return node, None
    others = [x for x in reader.all_input_nodes if x is not node]
    same = len(others) == 1 and shape_of(others[0]) == shape_of(node)
    return (reader, others[0]) if same and places.known(others[0], before=node) else (node, None)


def encoded(places: Rows, node: Node, source: str, layer: Gemv) -> tuple[str, str, str]:
    """Rows as codes, their scales and their sums; made once for all that read them in the same blocks."""
    base = f"{source}.by{layer.block}"
    codes, scales, sums = f"{base}.codes", f"{base}.scales", f"{base}.sums"
    if codes not in places.stores:
        places.temporary(codes, layer.codes, "int8")
        places.temporary(scales, layer.numbers, "float32")
        places.temporary(sums, layer.numbers, "int32")
        places.call(
            node, ("rounded", layer.x, layer.block), lambda name: rounded(layer, places.isa, name),
            (source, codes, scales, sums),
        )  # fmt: skip
    return codes, scales, sums


def shape_of(node: Node) -> list[str]:
    """A shape that can be compared: symbolic sizes by name."""
    found = spec(node)
    return [str(size) for size in found.shape] if found else []


def reads_few_bits(graph: Graph, target: Target) -> bool:
    """Whether a linear of a graph has weights in a format that a float op of the target reads."""
    formats = {row.format for row in target.weight_only}
    weights = (node.args[1] for node in graph.fx.nodes if node.target is aten.linear.default)
    return any(
        isinstance(weight, Node)
        and weight.target is qc.dequantize.default
        and arguments(weight)["format"] in formats
        for weight in weights
    )


FLOATS: Mapping[Any, Callable[[Rows, Node], bool]] = {
    aten.linear.default: linear,
}
