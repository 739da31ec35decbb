"""The linears of a quantized graph that ops compute, each with what its epilogue takes along.

    dequantize(quantize_rows(x)), dequantize(weight)  ->  linear  ->  activation  ->  + residual    one Layer
    dequantize(quantize(x)), dequantize(weight)       ->  linear  ->  activation  ->  + residual    another
    x, dequantize(weight in groups)                   ->  linear  ->  activation  ->  + residual    a third

Behind the first two may stand a `quantize` that only layers of the second kind read; of the third, two may be
one, or one may hold two (`gates`, `halves`). What an epilogue takes along is a table, and what keeps a linear
from being a layer is a list of sentences.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.triton.decisions import Linear
from qcompiler.backends.triton.engine.candidates import OURS
from qcompiler.backends.triton.engine.gates import gated
from qcompiler.backends.triton.engine.halves import halved
from qcompiler.backends.triton.engine.layer import Layer, Layers, activation_behind, only_reader, sum_behind
from qcompiler.backends.triton.engine.weights import (
    few_bit_obstacles,
    few_bit_region,
    has_zeros,
    layout_of_weight,
    tensor,
)
from qcompiler.backends.triton.ops.linear import is_heavy
from qcompiler.backends.triton.ops.schedule import named
from qcompiler.ir import Graph, arguments, spec
from qcompiler.ir.products import DEEPEST
from qcompiler.ir.rows import SHORT
from qcompiler.passes.partition import Region, partition
from qcompiler.target import Target

qc = torch.ops.qcompiler

DEEPEST_CALIBRATED = 2**31 // (128 * 127)  # products that int32 can sum where the codes of x may be -128


def layers_of(graph: Graph, target: Target) -> Layers:
    found, refused = [], {}
    on_codes = {region.anchor: region for region in partition(graph, target).values()}
    for node in graph.fx.nodes:
        region = on_codes.get(node) or few_bit_region(node, target)
        if region is None:
            continue
        why = next((obstacles if region.operands else few_bit_obstacles)(region, graph), None)
        if why is None:
            found.append(layer_at(region, graph))
        else:
            refused[region.anchor.name] = why
    pairs, apart = gated(found, graph)
    layers, others = halved(pairs, graph)
    return Layers(
        found=tuple(replace(layer, onward=onward(layer, layers)) for layer in layers),
        refused=refused,
        apart={**apart, **others},
    )


def obstacles(region: Region, graph: Graph) -> Iterator[str]:
    """Why no op computes a region, in sentences; none where one does."""
    if region.row.formula != "linear" or region.weight is None:
        formula = region.row.formula
        also = ", nor one of 1x1 as the linear over channels that it is" if formula == "conv" else ""
        yield f"no op computes a {formula} on codes{also}; keep it in float by an override"
        return
    (operand,), weight = region.operands, arguments(region.weight)
    calibrated = row_codes_of(operand) is None
    if calibrated and calibrated_codes_of(operand, graph) is None:
        yield "the codes of its input have a zero point, or moved since they were made; use a dynamic recipe"
    formats = arguments(operand)["format"], weight["format"]
    if formats[0] != formats[1] or SHORT.get(formats[0]) not in OURS:
        yield f"no op multiplies {formats[0]} by {formats[1]}; use one format of 8 bits for both"
    if any(weight[name].op != "get_attr" for name in ("q", "scale", "zero_point")):
        yield "its weight is no constant; keep it in float by an override"
        return
    if bool(tensor(weight["zero_point"], graph).double().any()):
        yield "its weight has zero points; use a symmetric format"
    if weight["block"] and not is_in_squares(tensor(weight["scale"], graph), weight["block"]):
        yield f"its weight has no scale for each square of {weight['block']}; plan it for this target"
    if weight["block"] and arguments(operand)["block"] != weight["block"]:
        yield f"its input has no scale for each {weight['block']}; plan it for this target"
    depth = tensor(weight["q"], graph).shape[1]
    if formats[0] == "int8" and depth > (DEEPEST_CALIBRATED if calibrated else DEEPEST):
        yield f"int32 does not hold the sum of {depth} products; keep it in float by an override"


def is_in_squares(scale: Tensor, block: int) -> bool:
    """Whether rows [N, groups] are alike within each block of them."""
    return torch.equal(scale, scale[torch.arange(len(scale)) // block * block])


def row_codes_of(decoded: Node) -> Node | None:
    """The `quantize_rows` whose codes a dequantize reads."""
    codes = arguments(decoded)["q"]
    made = codes.args[0] if codes.args else None
    return made if isinstance(made, Node) and made.target is qc.quantize_rows.default else None


def calibrated_codes_of(decoded: Node, graph: Graph) -> Node | None:
    """The `quantize` whose codes a dequantize reads, if both have one known scale, and no zero point."""
    given = arguments(decoded)
    made = given["q"]
    if not isinstance(made, Node) or made.target is not qc.quantize.default:
        return None
    names = ("scale", "zero_point")
    before = arguments(made)
    if given["axis"] is not None or any(
        each[name].op != "get_attr" for each in (given, before) for name in names
    ):
        return None
    scale, zero = (tensor(given[name], graph) for name in names)
    is_same = torch.equal(scale, tensor(before["scale"], graph)) and before["format"] == given["format"]
    is_centred = not bool(zero.double().any() or tensor(before["zero_point"], graph).double().any())
    return made if scale.numel() == 1 and is_same and is_centred else None


def onward(layer: Layer, layers: Iterable[Layer]) -> Node | None:
    """The `quantize` of a layer's result that its epilogue may compute; None where anybody reads floats."""
    coded = only_reader(layer.result)
    if coded is None or layer.is_weight_only:
        return None
    alike = {
        each.anchor for each in layers if each.coded is coded and each.problem.format == layer.problem.format
    }
    decoded = [reader for reader in coded.users if reader.target is qc.dequantize.default]
    read = {reader for each in decoded for reader in each.users}
    return coded if alike and read == alike and len(decoded) == len(coded.users) else None


def layer_at(region: Region, graph: Graph) -> Layer:
    anchor, weight = region.anchor, arguments(region.weight)  # type: ignore[arg-type]  # no obstacle
    x, coded = arguments(anchor)["input"], None
    if region.operands:
        by_row = row_codes_of(region.operands[0])
        coded = None if by_row is not None else calibrated_codes_of(region.operands[0], graph)
        quantized = by_row or coded
        assert quantized is not None
        x, format = arguments(quantized)["x"], SHORT[weight["format"]]
        format += f"b{weight['block']}" if weight["block"] else ""
    else:
        format = layout_of_weight(region, graph).name
    activation, turns = activation_behind(anchor)
    residual, adds = sum_behind(turns[-1] if turns else anchor)
    tail = (*turns, *adds)
    N, K = tensor(weight["q"], graph).shape
    held = spec(tail[-1] if tail else anchor)
    assert held is not None
    return Layer(
        region=region, x=x, codes=str(weight["q"].target),
        scale=str(weight["scale"].target), bias=arguments(anchor)["bias"], activation=activation,
        residual=residual, tail=tail, dtype=held.dtype, coded=coded,
        problem=Linear(
            format=format, N=N, K=K, out=named(held.dtype), heavy=is_heavy(activation, residual),
            zeros=not region.operands and has_zeros(region, graph),
        ),
    )  # fmt: skip
