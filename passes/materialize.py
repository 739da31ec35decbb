"""Carry out a plan: put quantize and dequantize where it says, and store weights as integers.

f(x, w, b)  -->  f(dq(q(x)), dq(w'), dq(b'))        w' = q(w), b' = rne(b / (s_x s_w)) in int32
f(x, w, b)  -->  f(dq(q(x)), dq(w'), b)             where the kernel returns float and adds b to it
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.errors import PlanError
from qcompiler.ir import Draft, Graph, arguments
from qcompiler.ir.spec import module_path, spec
from qcompiler.numerics import (
    FloatFormat,
    Format,
    IntFormat,
    PerTensor,
    QuantParams,
    params_from_range,
    parse_format,
    quantize,
)
from qcompiler.passes.weights import bias_codes, bias_params, weight_params, with_room_for_bias
from qcompiler.plan import Plan, ValueSpec, WeightSpec
from qcompiler.rewrite import Pass, Trait, traits

aten = torch.ops.aten
qc = torch.ops.qcompiler

FLOAT8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


def materialize(plan: Plan) -> Pass:
    """The pass that rewrites a canonical graph as the plan says."""
    return Pass(
        name="materialize",
        apply=lambda graph: quantized(graph, plan),
        requires="canonical",
        ensures="quantized",
        preserves=None,
    )


def quantized(graph: Graph, plan: Plan) -> Graph:
    draft = Draft(graph)
    names = {node.name: node for node in draft.nodes}
    missing = [value.value for value in plan.values if value.value not in names]
    if missing:
        raise PlanError(
            f"the plan speaks of '{missing[0]}', which the graph lacks", fix="plan again for this graph"
        )
    scales = {value.value: insert_pair(draft, names[value.value], value) for value in plan.values}
    quantize_constant_operands(draft, plan, names)
    for weight in plan.weights:
        insert_weight(draft, names[weight.layer], weight, scales)
    return draft.finish()


# ---------------------------------------------------------------- activations


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The q/dq pair of one value; `scale` is None where it is only known at run time."""

    dequantized: Node
    scale: float | None


def storage(format: Format) -> torch.dtype:
    """The torch dtype that codes are held in inside a graph."""
    return FLOAT8.get(format.name, torch.uint8) if isinstance(format, FloatFormat) else format.storage


def insert_pair(draft: Draft, value: Node, planned: ValueSpec) -> Pair:
    place = value.next
    while place.op == "placeholder":
        place = place.next
    readers = [user for user in value.users if not planned.readers or user.name in planned.readers]
    if planned.dynamic:
        codes, scale, zero = unpack_dynamic(draft, value, planned, place)
    else:
        format = parse_format(planned.format)
        scale = draft.constant(f"{value.name}.scale", torch.tensor(planned.scale), before=place)
        zero = draft.constant(
            f"{value.name}.zero_point", torch.tensor(planned.zero_point).to(storage(format)), before=place
        )
        codes = draft.call(
            qc.quantize.default, value, scale, zero, planned.format, before=place, origin=value,
            name=f"{value.name}_q",
        )  # fmt: skip
    dequantized = draft.call(
        qc.dequantize.default, codes, scale, zero, planned.format,
        *((-1, planned.block or width(value)) if planned.by_row else ()),
        before=place, origin=value, name=f"{value.name}_dq", **kept_type(value),
    )  # fmt: skip
    draft.replace(value, dequantized, only=readers)
    return Pair(dequantized=dequantized, scale=None if planned.dynamic else planned.scale)


def width(value: Node) -> int:
    """Elements of a row."""
    found = spec(value)
    assert found is not None
    return int(found.shape[-1])


def kept_type(value: Node) -> dict[str, Any]:
    """What a decoding is told, so that it has the type of the float value whose place it takes."""
    found = spec(value)
    assert found is not None
    return {} if found.dtype == torch.float32 else {"dtype": found.dtype}


def unpack_dynamic(draft: Draft, value: Node, planned: ValueSpec, place: Node) -> tuple[Node, Node, Node]:
    """Codes, scale and zero point of a value whose range, or that of rows or blocks, is taken at run time."""
    given: tuple[Any, ...] = (qc.dynamic_quantize.default, value)
    if planned.by_row:
        given = (qc.quantize_rows.default, value, planned.format)
    if planned.block:
        given = (*given, planned.block)
    triple = draft.call(*given, before=place, name=f"{value.name}_q")
    codes, scale, zero = (draft.call(operator.getitem, triple, index, before=place) for index in range(3))
    return codes, scale, zero


def quantize_constant_operands(draft: Draft, plan: Plan, names: dict[str, Node]) -> None:
    """A constant that an integer add, mul or cat reads becomes codes with the range of its own values."""
    for node, operand, format in constant_operands(plan, names):
        tensor = draft.tensors[str(operand.target)]
        params = params_of_constant(tensor, format)
        stored = store(draft, node, f"{operand.target}", quantize(tensor, params), params, None, 0)
        node.replace_input_with(operand, stored)


def params_of_constant(tensor: Tensor, format: Format) -> QuantParams:
    return params_from_range(tensor.min(), tensor.max(), format, PerTensor(), scheme="asymmetric")


def constant_operands(plan: Plan, names: Mapping[str, Node]) -> list[tuple[Node, Node, IntFormat]]:
    """Every op on codes that reads a constant, the constant, and the format that it becomes codes of."""
    found = []
    for layer in plan.layers:
        node = names[layer.node]
        if not layer.output_quantized or not traits(node) & (Trait.ELEMENTWISE | Trait.JOINS):
            continue
        format = parse_format(next(v.format for v in plan.values if v.value in reach(node)))
        constants = [operand for operand in node.all_input_nodes if operand.op == "get_attr"]
        found += [(node, operand, format) for operand in constants if isinstance(format, IntFormat)]
    return found


def reach(node: Node) -> set[str]:
    """Names of a node and of what follows it in a chain of single readers."""
    names = {node.name}
    while len(node.users) == 1:
        (node,) = node.users
        names.add(node.name)
    return names


# ---------------------------------------------------------------- weights


def insert_weight(draft: Draft, layer: Node, planned: WeightSpec, pairs: dict[str, Pair]) -> None:
    weight = arguments(layer)[planned.argument]
    held = draft.tensors[str(weight.target)]
    params, tensor = weight_params(held, planned), held.float()
    source = layer.args[0]
    input_scale = next((pair.scale for pair in pairs.values() if pair.dequantized is source), None)
    bias = draft.tensor(arguments(layer).get("bias"))
    integer = input_scale is not None and isinstance(params.format, IntFormat) and not planned.float_bias
    if bias is not None and input_scale is not None and integer:
        params = with_room_for_bias(params, bias, input_scale)
        insert_bias(draft, layer, bias, input_scale, params.scale)
    codes = quantize(tensor, params)
    if planned.square:  # each output's groups have scales of their own, which are those of its square
        every = torch.arange(len(tensor)) // planned.group_size
        params = replace(params, scale=params.scale[every], zero_point=params.zero_point[every])
    stored = store(
        draft, layer, f"{module_path(layer) or layer.name}.{planned.argument}", codes, params,
        planned.axis if not planned.group_size else 1, planned.group_size, **kept_type(weight),
    )  # fmt: skip
    layer.replace_input_with(weight, stored)


def store(
    draft: Draft, layer: Node, name: str, codes: Tensor, params: QuantParams, axis: int | None, block: int,
    **types: Any,
) -> Node:  # fmt: skip
    """Constants for codes, scale and zero point, and the dequantize that reads them."""
    dtype = storage(params.format)
    kept = codes.view(dtype) if isinstance(params.format, FloatFormat) else codes
    stored = draft.constant(f"{name}.codes", kept, before=layer)
    scale = draft.constant(f"{name}.scale", params.scale, before=layer)
    zero = draft.constant(f"{name}.zero_point", params.zero_point.to(dtype), before=layer)
    return draft.call(
        qc.dequantize.default,
        stored,
        scale,
        zero,
        params.format.name,
        axis,
        block,
        before=layer,
        origin=layer,
        **types,
    )


def insert_bias(draft: Draft, layer: Node, bias: Tensor, input_scale: float, weight_scale: Tensor) -> None:
    """b' = rne(b / (s_x s_w)) in int32: a kernel that returns codes takes no other bias."""
    codes, params = bias_codes(bias, input_scale, weight_scale), bias_params(input_scale, weight_scale)
    stored = store(draft, layer, f"{module_path(layer) or layer.name}.bias", codes, params, 0, 0)
    layer.replace_input_with(arguments(layer)["bias"], stored)
