"""What ONNX Runtime really executes: read from the graph it optimized, compared with the plan.

planned layer  <->  node of the same name in the optimized model  ->  kernel, precision, reason if float
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto

from qcompiler.backends.base import Executed, Execution
from qcompiler.plan import LayerPlan, Plan

INTEGER_KERNELS = frozenset({
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger",
    "QLinearAdd", "QLinearMul", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearConcat",
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearWhere", "ConvInteger", "NhwcMaxPool",
})  # fmt: skip
NARROW_KERNELS = {"MatMulNBits": "bits"}
# These are integer if what they read is, for they only pick elements.
PICKING = frozenset({"MaxPool", "Concat", "Reshape", "Transpose", "Flatten", "Squeeze", "Slice", "Gather"})
QDQ = ("QuantizeLinear", "DequantizeLinear")


def read_execution(optimized: Path, plan: Plan) -> Execution:
    """Match the nodes of an optimized model with the planned layers by name."""
    model = onnx.load(str(optimized), load_external_data=False)
    nodes = list(model.graph.node)
    types = value_types(model)
    by_name = index(nodes)
    layers = tuple(executed(layer, by_name, types) for layer in plan.layers)
    return Execution(
        layers=layers,
        kernels=dict(Counter(node.op_type for node in nodes)),
        stray=tuple(stray(nodes, plan)),
    )


def index(nodes: list[NodeProto]) -> dict[str, NodeProto]:
    """Planned name -> node; where several nodes carry one name, the integer kernel among them."""
    found: dict[str, NodeProto] = {}
    for node in nodes:
        name = planned_name(node.name)
        if node.op_type not in QDQ and name and (name not in found or is_kernel(node)):
            found[name] = node
    return found


# What ONNX Runtime's fusions and layout changes write around the name of the op they replace.
DECORATION = re.compile(r"^(?:fused )?(.+?)(?:_token_\d+|_nhwc|_nchwc|/.*)?$")


def planned_name(name: str) -> str:
    found = DECORATION.match(name)
    return found[1] if found else name


def is_kernel(node: NodeProto) -> bool:
    return node.op_type in INTEGER_KERNELS or node.op_type in NARROW_KERNELS


def executed(layer: LayerPlan, by_name: dict[str, NodeProto], types: dict[str, int]) -> Executed:
    node = by_name.get(layer.node)
    if node is None and layer.precision == "float":
        return Executed(node=layer.node, kernel="", precision="float", reason="merged into another kernel")
    if node is None:
        gone = "ONNX Runtime runs no node of its name, so nothing shows that it is an integer kernel"
        return Executed(node=layer.node, kernel="", precision="float", reason=gone)
    precision = precision_of(node, types)
    reason = diagnose(layer, node, types) if layer.precision != "float" and precision == "float" else ""
    return Executed(node=layer.node, kernel=node.op_type, precision=precision, reason=reason)


def precision_of(node: NodeProto, types: dict[str, int]) -> str:
    if node.op_type in INTEGER_KERNELS:
        return "int8"
    if node.op_type in NARROW_KERNELS:
        bits = next(a.i for a in node.attribute if a.name == NARROW_KERNELS[node.op_type])
        return f"int{bits}"
    if node.op_type in PICKING and types.get(node.input[0]) in (TensorProto.UINT8, TensorProto.INT8):
        return "int8"
    return "float"


def diagnose(layer: LayerPlan, node: NodeProto, types: dict[str, int]) -> str:
    """Why a planned integer layer stayed float, as far as its surroundings tell, and the fix."""
    activations = node.input[:1] if layer.op.startswith(("conv", "linear")) else node.input
    read = [types.get(f"{name}#dq") for name in activations] + [types.get(f"{node.output[0]}#q")]
    if TensorProto.INT8 in read:
        return "its activations are int8, which x86-64 kernels do not take when read twice; plan uint8"
    if any(kind in (TensorProto.INT16, TensorProto.UINT16) for kind in read):
        return "16-bit activations have no integer kernel; plan 8 bits"
    if any(kind in (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2) for kind in read):
        return "FP8 is computed in float on this CPU"
    if not layer.output_quantized and layer.op.startswith("conv"):
        return "its result is not quantized; a convolution needs that"
    return "ONNX Runtime matched no integer kernel around it"


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type by value name; `name#dq` is that of the codes before a value, `name#q` after it."""
    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for info in (*graph.input, *graph.output, *graph.value_info):
        types[info.name] = info.type.tensor_type.elem_type
    for node in graph.node:
        zero = node.input[-1] if node.input else ""
        if node.op_type == "QuantizeLinear":
            types[node.output[0]] = types[f"{node.input[0]}#q"] = types.get(zero, TensorProto.UINT8)
        elif node.op_type == "DequantizeLinear":
            types[f"{node.output[0]}#dq"] = types.get(zero, types.get(node.input[0], 0))
        elif node.op_type.startswith("QLinear"):
            types[node.output[0]] = types.get(zero, TensorProto.UINT8)
        elif node.op_type in PICKING and node.input[0] in types:
            types.setdefault(node.output[0], types[node.input[0]])
    return types


def stray(nodes: list[NodeProto], plan: Plan) -> Iterator[str]:
    """Q and DQ between two integer kernels: work that a kernel should have absorbed.

    Where the plan has a float op between them the pair is due, even if its range implies the op (a ReLU) and
    ONNX Runtime removed it.
    """
    due = {f"{layer.node}_q" for layer in plan.layers if layer.precision == "float"}
    produced = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in nodes:
        if node.op_type != "DequantizeLinear" or node.input[0] not in produced:
            continue
        after = readers.get(node.output[0], [])
        if after and all(
            reader.op_type == "QuantizeLinear" and planned_name(reader.name) not in due for reader in after
        ):
            yield node.name
