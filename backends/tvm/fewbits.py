"""Linears of floats with weights of few bits: their inputs as codes of a row and block, then one kernel.

linear(x, dequantize(w), b) + r   -->   rounded(x), gemv(.., w, b, r)         r known before, and read by row
norm(..), which a linear reads    -->   norm and rounded in one function         gates and attention as well
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.tvm.families.base import Layer, Places
from qcompiler.backends.tvm.fusions import behind
from qcompiler.backends.tvm.kernels.gemv import Gemv, by_register, gemv, pack
from qcompiler.backends.tvm.kernels.rounding import Rounding, rounded
from qcompiler.backends.tvm.plane import Plane
from qcompiler.ir import Graph, arguments
from qcompiler.numerics import IntFormat, parse_format
from qcompiler.passes.fuse import addend
from qcompiler.target import Target, WeightOnly

aten = torch.ops.aten
qc = torch.ops.qcompiler
CODES = ".by"  # between a value and the block by which it was rounded, in names of memory


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Codes u [outputs, inputs] of at most 8 bits, their scales and zero points [outputs, groups or 1]."""

    row: WeightOnly
    bits: int
    group: int
    codes: NDArray[np.uint8]
    scales: Tensor
    zeros: NDArray[np.uint8]

    @property
    def block(self) -> int:
        return self.group or self.row.default_block


def few_bit_linear(places: Places, node: Node) -> Layer | None:
    given = arguments(node)
    x, bias = given["input"], given["bias"]
    weight = weight_of(places, node)
    fits = (bias is None or bias.op == "get_attr") and node not in places.images
    if weight is None or not fits or not places.known(x, before=node):
        return None
    result, added = sum_behind(places, node)
    name, isa = places.rows(x), places.isa
    others = () if added is None else (places.rows(added),)
    halves = torch.equal(weight.scales, weight.scales.half().float())
    layer = Gemv(
        x=places.stores[name].plane, y=places.float_rows(result),
        residual=places.stores[others[0]].plane if others else None,
        bits=8 if weight.bits > 4 else 4, block=weight.block, per_column=not weight.group,
        zero=int(weight.zeros[0, 0]) if (weight.zeros == weight.zeros[0, 0]).all() else None,
        scales="float16" if halves else "float32", bias=bias is not None,
    )  # fmt: skip
    constants: dict[str, NDArray[Any]] = {
        "count": np.array([layer.blocks], np.int32),
        "weights": pack(layer, weight.codes, isa),
        "steps": by_register(weight.scales.numpy().astype(layer.scales), isa),
    }
    if layer.zero is None:
        full = np.broadcast_to(weight.zeros, (layer.outputs, layer.blocks))
        constants["zeros"] = by_register(full, isa)
    if layer.takes_bias:
        held = torch.zeros(layer.outputs) if bias is None else places.tensor(bias).float()
        constants["bias"] = by_register(held.numpy()[:, None], isa)
    known = {f"{node.name}.{kind}": array for kind, array in constants.items()}
    return Layer(
        kernel=weight.row.kernel, description=layer, make=lambda made: gemv(layer, isa, made),
        arguments=(*codes_of(places, node, name, layer.rounding), *known, *others), results=(result.name,),
        constants=known,
    )  # fmt: skip


def weight_of(places: Places, node: Node) -> Weight | None:
    """The weight of a linear of floats, if it is read as codes."""
    given = arguments(node)
    row = row_of(node, places.target)
    if row is None or given["input"].target is qc.dequantize.default:
        return None
    coded = arguments(given["weight"])
    format = parse_format(coded["format"])
    assert isinstance(format, IntFormat)
    codes, zeros = (places.tensor(coded[name]).to(torch.int32) - format.qmin for name in ("q", "zero_point"))
    return Weight(
        row=row, bits=format.bits, group=coded["block"],
        codes=codes.to(torch.uint8).numpy(),
        scales=places.tensor(coded["scale"]).float().reshape(len(codes), -1),
        zeros=zeros.to(torch.uint8).reshape(len(codes), -1).numpy(),
    )  # fmt: skip


def row_of(node: Node, target: Target) -> WeightOnly | None:
    """How a target reads the codes of a linear's weight."""
    weight = node.args[1] if node.target is aten.linear.default else None
    if not isinstance(weight, Node) or weight.target is not qc.dequantize.default:
        return None
    format = arguments(weight)["format"]
    return next((row for row in target.weight_only if row.format == format), None)


def sum_behind(places: Places, node: Node) -> tuple[Node, Node | None]:
    """The one reader of a result that only adds something known to it, and what it adds, if that pays."""
    (reader,) = node.users if len(node.users) == 1 else (None,)
    added = None if reader is None else addend(node, reader)
    if reader is None or added is None or not places.known(added, before=node):
        return node, None
    return (reader, added) if places.pays(behind(places, "sum of floats", node, reader)) else (node, None)


def codes_of(places: Places, node: Node, source: str, layer: Rounding) -> tuple[str, ...]:
    """Rows as codes, their scales and their sums; made once for all that read them in the same blocks."""
    names = names_of(source, layer.block)
    if names[0] not in places.stores:
        hold_codes(places, source, layer)
        places.call(
            node,
            Layer(
                kernel="rounding", description=layer, make=lambda made: rounded(layer, places.isa, made),
                arguments=(source,), results=names,
            ),
        )  # fmt: skip
    return names


def names_of(source: str, block: int) -> tuple[str, str, str]:
    base = f"{source}{CODES}{block}"
    return f"{base}.codes", f"{base}.scales", f"{base}.sums"


def hold_codes(places: Places, source: str, layer: Rounding) -> None:
    for name, (plane, dtype) in zip(names_of(source, layer.block), layer.planes, strict=True):
        places.hold(name, plane, dtype)


def rounded_behind(places: Places, value: Node, floats: Plane | None) -> tuple[int, tuple[str, ...]]:
    """The block in which the first reader of few bits takes a value, and where its codes lie; or 0, and ().

    For what computes rows of floats, so that it rounds them as well.
    """
    reader = next((user for user in value.users if row_of(user, places.target)), None)
    row = None if reader is None else row_of(reader, places.target)
    if floats is None or reader is None or row is None or reader.args[0] is not value:
        return 0, ()
    block: int = arguments(arguments(reader)["weight"])["block"] or row.default_block
    hold_codes(places, value.name, Rounding(x=floats, block=block))
    return block, names_of(value.name, block)


def reads_few_bits(graph: Graph, target: Target) -> bool:
    """Whether a linear of a graph has weights in a format that a float op of the target reads."""
    return any(row_of(node, target) for node in graph.fx.nodes)
