"""Every integer kernel that ONNX Runtime runs against the reference, node by node on the same inputs.

The optimized model is run once with all intermediate values as outputs; each kernel's output is then
computed again by the reference formula from the inputs that the kernel itself was given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor

from qcompiler.backends.base import NodeDistance
from qcompiler.backends.ort.contract import planned_name
from qcompiler.backends.ort.session import Settings, open_session
from qcompiler.backends.reference.formulas import FORMULAS
from qcompiler.backends.reference.kernels import Call, Codes, Output

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where an ONNX kernel keeps what a formula needs, as positions of its inputs (codes, scale, zero)."""

    formula: str
    operands: tuple[tuple[int, int, int], ...]
    output: tuple[int, int] | None = None
    weight: tuple[int, int, int] | None = None
    bias: int | None = None
    allowed: int = 0
    dynamic: bool = False  # the first input is float, and its range is taken at run time


X = (0, 1, 2)
LAYOUTS: Mapping[str, Layout] = {
    "QLinearConv": Layout(formula="conv", operands=(X,), weight=(3, 4, 5), output=(6, 7), bias=8),
    "QGemm": Layout(formula="linear", operands=(X,), weight=(3, 4, 5), bias=6, output=(7, 8)),
    "MatMulIntegerToFloat": Layout(formula="linear", operands=((0, 2, 4),), weight=(1, 3, 5), bias=6),
    "DynamicQuantizeMatMul": Layout(formula="linear", operands=(), weight=(1, 2, 3), bias=4, dynamic=True),
    "QLinearMatMul": Layout(formula="linear", operands=(X,), weight=(3, 4, 5), output=(6, 7)),
    "QLinearAdd": Layout(formula="add", operands=(X, (3, 4, 5)), output=(6, 7), allowed=1),
    "QLinearMul": Layout(formula="mul", operands=(X, (3, 4, 5)), output=(6, 7)),
    "QLinearGlobalAveragePool": Layout(formula="global_avg_pool", operands=(X,), output=(3, 4), allowed=1),
    "QLinearAveragePool": Layout(formula="avg_pool", operands=(X,), output=(3, 4), allowed=1),
    "QLinearSigmoid": Layout(formula="unary", operands=(X,), output=(3, 4)),
    "QLinearLeakyRelu": Layout(formula="unary", operands=(X,), output=(3, 4)),
    "QLinearConcat": Layout(formula="concat", operands=(), output=(0, 1)),
}


def verify_nodes(optimized: Path, inputs: Sequence[Tensor]) -> list[NodeDistance]:
    """The distance of every integer kernel in the model that runs."""
    model = onnx.load(str(optimized))
    nodes = [node for node in model.graph.node if node.op_type in LAYOUTS]
    if not nodes:
        return []
    values = run_with_all_values(model, nodes, inputs)
    return [distance(node, values) for node in nodes]


def run_with_all_values(
    model: onnx.ModelProto, nodes: Sequence[NodeProto], inputs: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Constants, graph inputs, and everything that the given nodes read or write."""
    read = {name for node in nodes for name in node.input}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    values = {
        name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for name, tensor in constants.items()
        if name in read
    }
    names = [given.name for given in model.graph.input if given.name not in constants]
    values |= dict(zip(names, inputs, strict=True))
    wanted = {name for node in nodes for name in (*node.input, *node.output) if name and name not in values}
    returned = {output.name for output in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in sorted(wanted - returned))
    session = open_session(model.SerializeToString(), Settings(level="disabled"))
    asked = sorted(wanted)
    feed = {name: np.ascontiguousarray(values[name].numpy()) for name in names}
    return values | {
        name: torch.from_numpy(np.asarray(found))
        for name, found in zip(asked, session.run(asked, feed), strict=True)
    }


def distance(node: NodeProto, values: Mapping[str, Tensor]) -> NodeDistance:
    layout = LAYOUTS[node.op_type]
    literal = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    last = bool(literal.get("channels_last", 0))
    call = bind(node, layout, values, literal, last)
    expected, actual = FORMULAS[layout.formula](call), to_first(values[node.output[0]], last)
    unit = 1.0 if call.output is not None else accumulator_unit(call)
    steps = (expected.double() - actual.double()).abs() / unit
    return NodeDistance(
        node=planned_name(node.name), kernel=node.op_type, max_lsb=float(steps.max()),
        changed=float((steps > 0).double().mean()), allowed=layout.allowed,
    )  # fmt: skip


def accumulator_unit(call: Call) -> Any:
    """A float result is measured in units of the accumulator: s_x s_w[c]."""
    assert call.weight is not None
    return (call.operands[0].scale * call.weight.scale).double()


def bind(
    node: NodeProto, layout: Layout, values: Mapping[str, Tensor], literal: Mapping[str, Any], last: bool
) -> Call:
    def at(position: int) -> Tensor | None:
        name = node.input[position] if position < len(node.input) else ""
        return values[name] if name else None

    def codes(triple: tuple[int, int, int], axis: int | None = None) -> Codes:
        stored, scale, zero = (at(position) for position in triple)
        assert stored is not None and scale is not None
        moved = to_first(stored, last) if axis is None else stored
        zero = torch.zeros_like(scale, dtype=stored.dtype) if zero is None else zero
        return Codes(values=moved, scale=scale, zero_point=zero, format=format_of(stored), axis=axis)

    triples = layout.operands or tuple((i, i + 1, i + 2) for i in range(2, len(node.input), 3))
    operands = [quantized_now(at(0))] if layout.dynamic else [codes(triple) for triple in triples]
    scale, zero = (at(position) for position in layout.output) if layout.output else (None, None)
    output = (
        None
        if scale is None or zero is None
        else Output(scale=scale, zero_point=zero, format=format_of(zero))
    )
    weight = codes(layout.weight, axis=0) if layout.weight else None
    if weight is not None and layout.formula == "linear" and not literal.get("transB", 0):
        weight = Codes(values=weight.values.t(), scale=weight.scale, zero_point=weight.zero_point,
                       format=weight.format, axis=0)  # fmt: skip
    bias = at(layout.bias) if layout.bias is not None else None
    return Call(
        operands=operands, weight=weight, bias=bias_codes(bias), output=output,
        arguments=arguments_of(node.op_type, literal, last), op=operation(node, literal, operands),
    )  # fmt: skip


def quantized_now(x: Tensor | None) -> Codes:
    assert x is not None
    values, scale, zero_point = torch.ops.qcompiler.dynamic_quantize(x)
    return Codes(values=values, scale=scale, zero_point=zero_point, format="uint8")


def bias_codes(bias: Tensor | None) -> Codes | Tensor | None:
    """An int32 bias is added to the accumulator, a float one to the result."""
    if bias is None or bias.is_floating_point():
        return bias
    return Codes(
        values=bias, scale=torch.ones(()), zero_point=torch.zeros((), dtype=torch.int32), format="int32"
    )


def arguments_of(kernel: str, literal: Mapping[str, Any], last: bool) -> dict[str, Any]:
    if kernel == "QLinearConv":
        pads = list(literal.get("pads", []))
        dims = len(pads) // 2 or len(literal.get("strides", [1, 1]))
        return {
            "stride": list(literal.get("strides", [1] * dims)),
            "padding": pads[:dims] or [0] * dims,
            "dilation": list(literal.get("dilations", [1] * dims)),
            "groups": int(literal.get("group", 1)),
        }
    if kernel == "QLinearAveragePool":
        dims = len(literal["kernel_shape"])
        return {
            "kernel_size": list(literal["kernel_shape"]),
            "stride": list(literal.get("strides", [1] * dims)),
            "padding": list(literal.get("pads", [0] * 2 * dims))[:dims],
            "ceil_mode": bool(literal.get("ceil_mode", 0)),
            "count_include_pad": bool(literal.get("count_include_pad", 0)),
        }
    if kernel == "QLinearLeakyRelu":
        return {"negative_slope": float(literal.get("alpha", 0.01))}
    return {"dim": int(literal["axis"])} if kernel == "QLinearConcat" else {}


def operation(node: NodeProto, literal: Mapping[str, Any], operands: Sequence[Codes]) -> Callable[..., Any]:
    """The float op that a formula applies to centred or decoded codes."""
    dims = operands[0].values.dim() - 2
    convolutions = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
    table: dict[str, Callable[..., Any]] = {
        "QLinearConv": convolutions.get(dims, aten.conv2d.default),
        "QLinearAveragePool": aten.avg_pool2d.default,
        "QLinearSigmoid": aten.sigmoid.default,
        "QLinearLeakyRelu": aten.leaky_relu.default,
    }
    return table.get(node.op_type, aten.add.Tensor)


def to_first(tensor: Tensor, last: bool) -> Tensor:
    """[N, ..., C] -> [N, C, ...] where a kernel works with channels last."""
    return tensor.movedim(-1, 1) if last and tensor.dim() > 2 else tensor


def format_of(codes: Tensor) -> str:
    return str(codes.dtype).removeprefix("torch.")
