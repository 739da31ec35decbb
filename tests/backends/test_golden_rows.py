"""Which QDQ graphs ONNX Runtime turns into integer kernels: one row per fact, about the version installed.

The target's table and the plan rest on these facts, so a release that changes one must turn a test red.
Kernels are what the optimized model holds besides Q, DQ and layout: `op` on floats, `op<uint8>` on codes.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
CODES = {"uint8": np.uint8, "int8": np.int8, "int16": np.int16, "uint16": np.uint16, "int32": np.int32}
SCALE = 1 / 64


@dataclass
class Sketch:
    """An ONNX graph being drawn; every method returns the name of the value that it adds."""

    opset: int = 21
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def new(self) -> str:
        return f"v{len(self.nodes) + len(self.constants) + len(self.inputs)}"

    def input(self, *shape: int | str, kind: int = TensorProto.FLOAT) -> str:
        name = self.new()
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, array: Any) -> str:
        name = self.new()
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def narrow(self, kind: int, shape: tuple[int, ...]) -> str:
        """Zeros in a type that numpy lacks."""
        name = self.new()
        bits: dict[int, int] = {TensorProto.INT2: 2, TensorProto.INT4: 4, TensorProto.UINT4: 4}
        raw = bytes(-(-int(np.prod(shape)) * bits.get(kind, 8) // 8))
        self.constants.append(helper.make_tensor(name, kind, shape, raw, raw=True))
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = self.new()
        self.nodes.append(
            helper.make_node(kind, inputs, [name], name=f"{kind}_{name}", domain=domain, **attributes)
        )
        return name

    # ------------------------------------------------------------ quantized values

    def parameters(self, scale: float, zero: int, format: str) -> tuple[str, str]:
        return self.constant(np.float32(scale)), self.constant(CODES[format](zero))

    def quantized(
        self, x: str, *, zero: int | None = None, scale: float = SCALE, format: str = "uint8"
    ) -> str:
        """Q -> DQ, in the middle of the format unless a zero point is given."""
        middle = {"uint8": 128, "uint16": 32768}.get(format, 0)
        given = self.parameters(scale, middle if zero is None else zero, format)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *given), *given)

    def weight(self, *shape: int, axis: int | None = 0, format: str = "int8", zero: int = 0) -> str:
        """DQ of integer codes, one scale per index of `axis`."""
        codes = self.constant(self.random.integers(1, 100, shape).astype(CODES[format]))
        size = () if axis is None else (shape[axis],)
        along: dict[str, Any] = {} if axis is None else {"axis": axis}
        return self.op(
            "DequantizeLinear", codes, self.constant(np.full(size, SCALE, np.float32)),
            self.constant(np.full(size, zero, CODES[format])), **along,
        )  # fmt: skip

    def bias(self, channels: int, *, scale: float = SCALE * SCALE) -> str:
        """DQ of int32 codes; a kernel takes them if the scale is s_x s_w."""
        codes = self.constant(np.arange(channels, dtype=np.int32))
        zero = self.constant(np.zeros(channels, np.int32))
        return self.op(
            "DequantizeLinear", codes, self.constant(np.full(channels, scale, np.float32)), zero, axis=0
        )

    def floats(self, *shape: int) -> str:
        return self.constant(self.random.standard_normal(shape, dtype=np.float32))

    # ------------------------------------------------------------ what becomes of it

    def model(self, *outputs: str) -> onnx.ModelProto:
        returned = [helper.make_empty_tensor_value_info(name) for name in (*outputs, *self.outputs)]
        graph = helper.make_graph(self.nodes, "row", self.inputs, returned, self.constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=opsets, ir_version=12 if self.opset > 23 else 10)
        )


def optimized(
    model: onnx.ModelProto, folder: Path, level: str = "all", entries: dict[str, str] | None = None
) -> onnx.ModelProto:
    """The graph that ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def kernels(model: onnx.ModelProto) -> list[str]:
    """The computing nodes, sorted by name."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types |= {info.name: info.type.tensor_type.elem_type for info in model.graph.input}
    found = []
    for node in model.graph.node:
        source = types.get(node.input[0], TensorProto.FLOAT) if node.input else TensorProto.FLOAT
        kind = source
        if node.op_type == "QuantizeLinear":
            kind = types[node.input[2]]
        elif node.op_type in ("DequantizeLinear", "MatMulIntegerToFloat") or node.op_type.endswith("Float"):
            kind = TensorProto.FLOAT
        types |= dict.fromkeys(node.output, kind)
        integer = source in (TensorProto.UINT8, TensorProto.INT8) and not is_quantized(node.op_type)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or is_layout(node):
            continue
        found.append(
            f"{node.op_type}<{TensorProto.DataType.Name(source).lower()}>" if integer else node.op_type
        )
    return sorted(found)


def is_layout(node: onnx.NodeProto) -> bool:
    """A Transpose or Reshape that the optimizer put there; those that were drawn keep their names."""
    return node.op_type in ("Transpose", "Reshape") and not re.fullmatch(r"\w+_v\d+", node.name)


def is_quantized(kernel: str) -> bool:
    return kernel.startswith(("QLinear", "QGemm", "MatMulInteger", "DynamicQuantize"))


Draw = Callable[[Sketch], str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A graph, and the kernels that it becomes."""

    op: str
    when: str
    draw: Draw
    kernels: str
    opset: int = 21


def check(row: Row, folder: Path) -> None:
    sketch = Sketch(opset=row.opset)
    output = row.draw(sketch)
    assert kernels(optimized(sketch.model(output), folder)) == sorted(row.kernels.split())


def parametrized(rows: tuple[Row, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[f"{row.op}: {row.when}" for row in rows])


# ---------------------------------------------------------------- convolutions


def conv(
    dims: int = 2, *, weight: str = "int8", groups: int = 1, bias: str = "int32", after: tuple[str, ...] = (),
    output: bool = True, zero: int = 128, scale: float = SCALE, format: str = "uint8",
) -> Draw:  # fmt: skip
    def draw(s: Sketch) -> str:
        x = s.quantized(s.input(2, 8, *[9] * dims), format=format)
        shape = (8, 8 // groups, *[3] * dims)
        w = s.weight(*shape) if weight == "int8" else s.weight(*shape, axis=None, format="uint8", zero=128)
        given = {
            "int32": (s.bias(8),),
            "other scale": (s.bias(8, scale=SCALE),),
            "float": (s.floats(8),),
            "none": (),
        }[bias]
        y = s.op("Conv", x, w, *given, kernel_shape=[3] * dims, group=groups)
        for kind in after:
            bounds = (s.constant(np.float32(0)), s.constant(np.float32(6))) if kind == "Clip" else ()
            y = s.op(kind, y, *bounds)
        return s.quantized(y, zero=zero, scale=scale, format=format) if output else y

    return draw


CONVOLUTIONS = (
    *(Row(op="Conv", when=f"{n}-D", draw=conv(n), kernels="QLinearConv") for n in (1, 2, 3)),
    Row(op="Conv", when="depthwise", draw=conv(groups=8), kernels="QLinearConv"),
    Row(op="Conv", when="uint8 per-tensor weight", draw=conv(weight="uint8"), kernels="QLinearConv"),
    Row(op="Conv", when="float bias", draw=conv(bias="float"), kernels="QLinearConv"),
    Row(op="Conv", when="no bias", draw=conv(bias="none"), kernels="QLinearConv"),
    Row(op="Conv", when="bias scale is not s_x s_w", draw=conv(bias="other scale"), kernels="Conv"),
    Row(op="Conv", when="no output Q", draw=conv(output=False), kernels="Conv"),
    Row(op="Conv", when="ReLU, zero point at qmin", draw=conv(after=("Relu",), zero=0),
        kernels="QLinearConv"),
    Row(op="Conv", when="ReLU, zero point above qmin", draw=conv(after=("Relu",)), kernels="FusedConv"),
    Row(op="Conv", when="Clip(0, 6), 255 s <= 6", draw=conv(after=("Clip",), zero=0), kernels="QLinearConv"),
    Row(op="Conv", when="Clip(0, 6), 255 s > 6", draw=conv(after=("Clip",), zero=0, scale=0.03),
        kernels="FusedConv"),
    Row(op="Conv", when="LeakyRelu before Q", draw=conv(after=("LeakyRelu",)), kernels="FusedConv"),
    Row(op="Conv", when="Sigmoid before Q", draw=conv(after=("Sigmoid",)), kernels="FusedConv"),
    Row(op="Conv", when="HardSwish before Q", draw=conv(after=("HardSwish",)),
        kernels="Conv HardSigmoid Mul"),
    Row(op="Conv", when="16-bit activations", draw=conv(format="uint16", bias="none"), kernels="Conv"),
)  # fmt: skip


@parametrized(CONVOLUTIONS)
def test_convolution(row: Row, tmp_path: Path) -> None:
    check(row, tmp_path)


# ---------------------------------------------------------------- other ops between Q/DQ pairs


def apply(
    op: str, *, shape: tuple[int, ...] = (2, 8, 10, 10), constants: tuple[Any, ...] = (), output: bool = True,
    zero: int | None = None, scale: float = SCALE, format: str = "uint8", domain: str = "", **attributes: Any,
) -> Draw:  # fmt: skip
    """Q DQ -> op(x, *constants) -> Q DQ."""

    def draw(s: Sketch) -> str:
        x = s.quantized(s.input(*shape), format=format)
        y = s.op(op, x, *(s.constant(c) for c in constants), domain=domain, **attributes)
        return s.quantized(y, zero=zero, scale=scale, format=format) if output else y

    return draw


def combine(
    op: str, *, output: bool = True, zero: int | None = None, after: str = "", **attributes: Any
) -> Draw:
    """op of two quantized activations with different scales."""

    def draw(s: Sketch) -> str:
        first, second = (s.quantized(s.input(2, 8, 10, 10), scale=scale) for scale in (SCALE, 2 * SCALE))
        y = s.op(op, first, second, **attributes)
        y = s.op(after, y) if after else y
        return s.quantized(y, zero=zero) if output else y

    return draw


def with_quantized_constant(op: str) -> Draw:
    def draw(s: Sketch) -> str:
        x = s.quantized(s.input(2, 8, 10, 10))
        return s.quantized(s.op(op, x, s.weight(8, 1, 1, axis=None, format="uint8", zero=3)))

    return draw


def swish(s: Sketch) -> str:
    x = s.quantized(s.input(2, 8, 10, 10))
    return s.quantized(s.op("Mul", x, s.quantized(s.op("Sigmoid", x), zero=0, scale=1 / 255)))


def where(s: Sketch) -> str:
    chosen = s.input(2, 8, kind=TensorProto.BOOL)
    first, second = (s.quantized(s.input(2, 8)) for _ in range(2))
    return s.quantized(s.op("Where", chosen, first, second))


def split(s: Sketch) -> str:
    x = s.quantized(s.input(2, 8))
    s.nodes.append(helper.make_node("Split", [x], ["left", "right"], name="split", num_outputs=2, axis=1))
    s.outputs = [s.quantized("left")]
    return s.quantized("right")


def table(s: Sketch) -> str:
    return s.quantized(
        s.op("Gather", s.weight(20, 8, axis=None), s.input(2, 5, kind=TensorProto.INT64)), format="int8"
    )


def table_on_codes(s: Sketch) -> str:
    rows = s.op("Gather", s.constant(np.ones((20, 8), np.int8)), s.input(2, 5, kind=TensorProto.INT64))
    return s.op("DequantizeLinear", rows, *s.parameters(SCALE, 0, "int8"))


def moved_on_codes(s: Sketch) -> str:
    given = s.parameters(SCALE, 128, "uint8")
    codes = s.op("QuantizeLinear", s.input(2, 8, 10, 10), *given)
    padded = s.op("Pad", codes, s.constant([0, 0, 1, 1, 0, 0, 1, 1]), s.constant(np.uint8(128)))
    return s.op("DequantizeLinear", s.op("SpaceToDepth", padded, blocksize=2), *given)


def conv_transpose(s: Sketch) -> str:
    x = s.quantized(s.input(2, 8, 9, 9))
    return s.quantized(s.op("ConvTranspose", x, s.weight(8, 8, 3, 3, axis=1), kernel_shape=[3, 3]))


# Six channels fill no block of 8 or 16, for which the engine would reorder a float pool's input.
POOL: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2], "shape": (2, 6, 10, 10)}
SIZES = np.array([1, 1, 2, 2], np.float32)
EMPTY = np.array([], np.float32)
FLOAT_UNARY = ("Tanh", "HardSigmoid", "Gelu", "Erf", "Exp", "Sqrt", "Elu", "Neg", "Abs")
MOVED: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("Reshape", (np.array([2, 800]),), {}),
    ("Transpose", (), {"perm": [0, 2, 3, 1]}),
    ("Flatten", (), {}),
    ("Unsqueeze", (np.array([1]),), {}),
    ("Slice", (np.array([1]), np.array([5]), np.array([1])), {}),
    ("Gather", (np.array([0, 3]),), {"axis": 1}),
    ("Expand", (np.array([3, 2, 8, 10, 10]),), {}),
    ("Tile", (np.array([1, 2, 1, 1]),), {}),
    ("DepthToSpace", (), {"blocksize": 2}),
)

OPERATIONS = (
    Row(op="ConvTranspose", when="any", draw=conv_transpose, kernels="ConvTranspose"),
    Row(op="Add", when="two activations", draw=combine("Add"), kernels="QLinearAdd"),
    Row(op="Mul", when="two activations", draw=combine("Mul"), kernels="QLinearMul"),
    Row(op="Add", when="quantized constant", draw=with_quantized_constant("Add"), kernels="QLinearAdd"),
    Row(op="Mul", when="quantized constant", draw=with_quantized_constant("Mul"), kernels="QLinearMul"),
    Row(op="Add", when="ReLU, zero point at qmin", draw=combine("Add", after="Relu", zero=0),
        kernels="QLinearAdd"),
    Row(op="Add", when="float constant", draw=apply("Add", constants=(np.float32(3),)), kernels="Add"),
    Row(op="Mul", when="float constant", draw=apply("Mul", constants=(np.float32(3),)), kernels="Mul"),
    *(Row(op=op, when="two activations", draw=combine(op), kernels=op)
      for op in ("Sub", "Div", "Max", "Min")),
    Row(op="AveragePool", when="any", draw=apply("AveragePool", **POOL), kernels="QLinearAveragePool"),
    Row(op="GlobalAveragePool", when="any", draw=apply("GlobalAveragePool"),
        kernels="QLinearGlobalAveragePool"),
    Row(op="ReduceMean", when="over space", draw=apply("ReduceMean", constants=(np.array([2, 3]),)),
        kernels="ReduceMean"),
    Row(op="MaxPool", when="equal parameters", draw=apply("MaxPool", **POOL), kernels="MaxPool<uint8>"),
    Row(op="MaxPool", when="other output scale", draw=apply("MaxPool", scale=0.03, **POOL),
        kernels="MaxPool"),
    Row(op="ReduceMax", when="any", draw=apply("ReduceMax", constants=(np.array([1]),)),
        kernels="ReduceMax<uint8>"),
    Row(op="ArgMax", when="no output Q", draw=apply("ArgMax", output=False, axis=1), kernels="ArgMax<uint8>"),
    Row(op="Resize", when="nearest", draw=apply("Resize", constants=(EMPTY, SIZES), mode="nearest"),
        kernels="Resize<uint8>"),
    Row(op="Resize", when="linear", draw=apply("Resize", constants=(EMPTY, SIZES), mode="linear"),
        kernels="Resize"),
    Row(op="Concat", when="different scales", draw=combine("Concat", axis=1), kernels="QLinearConcat"),
    *(Row(op=op, when="any", draw=apply(op, constants=given, **attributes), kernels=f"{op}<uint8>")
      for op, given, attributes in MOVED),
    Row(op="Squeeze", when="any", draw=apply("Squeeze", shape=(2, 1, 8), constants=(np.array([1]),)),
        kernels="Squeeze<uint8>"),
    Row(op="Split", when="any", draw=split, kernels="Split<uint8>"),
    Row(op="SpaceToDepth", when="any", draw=apply("SpaceToDepth", blocksize=2), kernels="SpaceToDepth"),
    Row(op="Pad", when="constant", draw=apply("Pad", constants=(np.array([0, 0, 1, 1, 0, 0, 1, 1]),)),
        kernels="Pad"),
    Row(op="Pad and SpaceToDepth", when="written on codes", draw=moved_on_codes,
        kernels="Pad<uint8> SpaceToDepth<uint8>"),
    Row(op="Gather", when="of a dequantized table", draw=table, kernels="Gather"),
    Row(op="Gather", when="of codes", draw=table_on_codes, kernels="Gather<int8>"),
    Row(op="LeakyRelu", when="any", draw=apply("LeakyRelu"), kernels="QLinearLeakyRelu"),
    Row(op="Sigmoid", when="any", draw=apply("Sigmoid"), kernels="QLinearSigmoid"),
    Row(op="Softmax", when="any", draw=apply("Softmax", axis=-1), kernels="QLinearSoftmax"),
    Row(op="x Sigmoid(x)", when="Q/DQ on both", draw=swish, kernels="QLinearSigmoid QLinearMul"),
    Row(op="Where", when="any", draw=where, kernels="QLinearWhere"),
    Row(op="Relu", when="alone, range implies it", draw=apply("Relu", zero=0), kernels=""),
    *(Row(op=op, when="any", draw=apply(op), kernels=op) for op in FLOAT_UNARY),
    Row(op="HardSwish", when="any", draw=apply("HardSwish"), kernels="HardSigmoid Mul"),
    Row(op="LayerNormalization", when="any", kernels="LayerNormalization",
        draw=apply("LayerNormalization", constants=(np.ones(10, np.float32),), axis=-1)),
    Row(op="InstanceNormalization", when="any", kernels="InstanceNormalization",
        draw=apply("InstanceNormalization", constants=(np.ones(8, np.float32), np.zeros(8, np.float32)))),
    *(Row(op=op, when="16-bit activations", draw=apply(op, format="int16", **given), kernels=op)
      for op, given in (("Softmax", {"axis": -1}), ("Sigmoid", {}), ("MaxPool", POOL))),
    Row(op="Transpose", when="16-bit activations", draw=apply("Transpose", format="int16", perm=[0, 2, 3, 1]),
        kernels="Transpose"),
)  # fmt: skip


@parametrized(OPERATIONS)
def test_operation(row: Row, tmp_path: Path) -> None:
    check(row, tmp_path)


# ---------------------------------------------------------------- linear layers


def linear(
    op: str = "MatMul", *, shape: tuple[int | str, ...] = (5, 16), bias: str = "none", output: bool = True,
    turned: bool = False, **attributes: Any,
) -> Draw:  # fmt: skip
    """x W + b with W of 16 x 8; `turned` stores it as 8 x 16."""

    def draw(s: Sketch) -> str:
        x = s.quantized(s.input(*shape))
        w = s.weight(8, 16, axis=0) if turned else s.weight(16, 8, axis=1)
        if turned and op == "MatMul":
            w = s.op("Transpose", w, perm=[1, 0])
        added = {"int32": (s.bias(8),), "float": (s.floats(8),), "none": ()}[bias]
        if op == "Gemm":
            y = s.op("Gemm", x, w, *added, **attributes)
        else:
            y = s.op("MatMul", x, w)
            y = s.op("Add", y, *added) if added else y
        return s.quantized(y) if output else y

    return draw


def two_activations(output: bool) -> Draw:
    def draw(s: Sketch) -> str:
        y = s.op("MatMul", s.quantized(s.input(2, 5, 16)), s.quantized(s.input(2, 16, 8)))
        return s.quantized(y) if output else y

    return draw


def narrow_weight(s: Sketch) -> str:
    """A quantized input with an int4 weight."""
    x = s.quantized(s.input(5, 32))
    w = s.op(
        "DequantizeLinear", s.narrow(TensorProto.INT4, (32, 8)), s.constant(np.ones(8, np.float32)), axis=1
    )
    return s.quantized(s.op("MatMul", x, w))


DYNAMIC = ("n", "length", 16)
LINEARS = (
    Row(op="MatMul", when="no bias, no output Q", draw=linear(output=False), kernels="MatMulIntegerToFloat"),
    Row(op="MatMul", when="no bias, no output Q, dynamic", draw=linear(shape=DYNAMIC, output=False),
        kernels="MatMulIntegerToFloat"),
    Row(op="MatMul", when="output Q", draw=linear(), kernels="QLinearMatMul"),
    Row(op="MatMul + Add", when="float bias, no output Q", draw=linear(bias="float", output=False),
        kernels="Gemm"),
    Row(op="MatMul + Add", when="float bias, no output Q, dynamic", kernels="MatMulIntegerToFloat Add",
        draw=linear(shape=DYNAMIC, bias="float", output=False)),
    Row(op="MatMul + Add", when="int32 bias, no output Q", draw=linear(bias="int32", output=False),
        kernels="QGemm"),
    Row(op="MatMul + Add", when="int32 bias, no output Q, dynamic", kernels="MatMulIntegerToFloat Add",
        draw=linear(shape=DYNAMIC, bias="int32", output=False)),
    Row(op="MatMul + Add", when="float bias, output Q", draw=linear(bias="float"), kernels="QGemm"),
    Row(op="MatMul + Add", when="int32 bias, output Q", draw=linear(bias="int32"), kernels="QGemm"),
    Row(op="MatMul + Add", when="int32 bias, output Q, dynamic", kernels="MatMulIntegerToFloat Add",
        draw=linear(shape=DYNAMIC, bias="int32")),
    Row(op="Gemm", when="float bias, no output Q", draw=linear("Gemm", bias="float", output=False),
        kernels="Gemm"),
    Row(op="Gemm", when="transB, float bias, no output Q", kernels="Gemm",
        draw=linear("Gemm", bias="float", output=False, turned=True, transB=1)),
    *(Row(op="Gemm", when=f"int32 bias, {'output Q' if output else 'no output Q'}", kernels="QGemm",
          draw=linear("Gemm", bias="int32", output=output)) for output in (True, False)),
    *(Row(op="Gemm", when=f"transB, int32 bias, {'output Q' if output else 'no output Q'}", kernels="QGemm",
          draw=linear("Gemm", bias="int32", output=output, turned=True, transB=1))
      for output in (True, False)),
    Row(op="MatMul", when="Transpose of a dequantized weight", draw=linear(turned=True),
        kernels="QLinearMatMul"),
    Row(op="MatMul", when="two activations, output Q", draw=two_activations(True), kernels="QLinearMatMul"),
    Row(op="MatMul", when="two activations, no output Q", draw=two_activations(False),
        kernels="MatMulIntegerToFloat"),
    Row(op="MatMul", when="uint8 input and int4 weight", draw=narrow_weight, kernels="MatMul"),
)  # fmt: skip


@parametrized(LINEARS)
def test_linear(row: Row, tmp_path: Path) -> None:
    check(row, tmp_path)


def test_a_weight_scale_along_the_reduction_fails_when_it_runs(tmp_path: Path) -> None:
    s = Sketch()
    y = s.quantized(s.op("MatMul", s.quantized(s.input(5, 16)), s.weight(16, 8, axis=0)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(s.model(y).SerializeToString(), options)
    with pytest.raises(Exception, match="IsBQuantParamSupported"):
        session.run(None, {"v0": np.zeros((5, 16), np.float32)})


# ---------------------------------------------------------------- weights in few bits


def few_bits(
    kind: int, *, block: int = 0, axis: int = 0, turned: bool = False, op: str = "MatMul", bias: bool = False,
    shape: tuple[int, ...] = (5, 64), per_tensor: bool = False, **attributes: Any,
) -> Draw:  # fmt: skip
    """A float input with a stored integer weight of 64 x 16."""

    def draw(s: Sketch) -> str:
        stored = (16, 64) if turned else (64, 16)
        channel = 0 if turned else 1
        if per_tensor:
            w = s.op("DequantizeLinear", s.narrow(kind, stored), s.constant(np.float32(0.1)))
        elif block:
            scales = list(stored)
            scales[axis] //= block
            w = s.op("DequantizeLinear", s.narrow(kind, stored), s.constant(np.ones(scales, np.float32)),
                     axis=axis, block_size=block)  # fmt: skip
        else:
            w = s.op(
                "DequantizeLinear", s.narrow(kind, stored), s.constant(np.ones(16, np.float32)), axis=channel
            )
        w = s.op("Transpose", w, perm=[1, 0]) if turned and op == "MatMul" else w
        y = s.op(op, s.input(*shape), w, **attributes)
        return s.op("Add", y, s.floats(16)) if bias else y

    return draw


def conv_in_few_bits(s: Sketch) -> str:
    return s.op("Conv", s.input(1, 8, 9, 9), s.weight(8, 8, 3, 3), kernel_shape=[3, 3])


INT4, INT8, INT2 = TensorProto.INT4, TensorProto.INT8, TensorProto.INT2
WEIGHT_ONLY = (
    *(Row(op="int4", when=f"block {size}", draw=few_bits(INT4, block=size), kernels="MatMulNBits")
      for size in (16, 32, 64)),
    Row(op="int4", when="per column", draw=few_bits(INT4), kernels="MatMulNBits"),
    Row(op="int4", when="per tensor", draw=few_bits(INT4, per_tensor=True), kernels="MatMulNBits"),
    Row(op="uint4", when="block 32", draw=few_bits(TensorProto.UINT4, block=32), kernels="MatMulNBits"),
    Row(op="int4", when="bias", draw=few_bits(INT4, block=32, bias=True), kernels="MatMulNBits"),
    Row(op="int4", when="3-D", draw=few_bits(INT4, block=32, shape=(2, 5, 64)), kernels="MatMulNBits"),
    Row(op="int4", when="one row", draw=few_bits(INT4, block=32, shape=(1, 64)), kernels="MatMulNBits"),
    Row(op="int4", when="Gemm", draw=few_bits(INT4, block=32, op="Gemm"), kernels="MatMulNBits"),
    Row(op="int8", when="per column", draw=few_bits(INT8), kernels="MatMulNBits"),
    Row(op="int8", when="per tensor", draw=few_bits(INT8, per_tensor=True), kernels="MatMulNBits"),
    Row(op="int8", when="block 32", draw=few_bits(INT8, block=32), kernels="MatMulNBits"),
    Row(op="uint8", when="per column", draw=few_bits(TensorProto.UINT8), kernels="MatMulNBits"),
    Row(op="int2", when="block 32", draw=few_bits(INT2, block=32), kernels="MatMulNBits", opset=25),
    Row(op="int4", when="block 8", draw=few_bits(INT4, block=8), kernels="MatMul"),
    Row(op="int4", when="blocks on axis 1", draw=few_bits(INT4, block=16, axis=1), kernels="MatMul"),
    Row(op="int4", when="stored [N, K] + Transpose", draw=few_bits(INT4, block=32, axis=1, turned=True),
        kernels="FusedMatMul"),
    Row(op="int4", when="Gemm with transB", kernels="Gemm",
        draw=few_bits(INT4, block=32, axis=1, turned=True, op="Gemm", transB=1)),
    Row(op="int8", when="Conv", draw=conv_in_few_bits, kernels="Conv"),
    Row(op="int8", when="a table through Gather", draw=table, kernels="Gather"),
)  # fmt: skip


@parametrized(WEIGHT_ONLY)
def test_weight_only(row: Row, tmp_path: Path) -> None:
    check(row, tmp_path)


@pytest.mark.parametrize(("level", "kernel"), [("basic", "MatMul"), ("extended", "MatMulNBits")])
def test_weight_only_needs_the_extended_level(level: str, kernel: str, tmp_path: Path) -> None:
    s = Sketch()
    model = s.model(few_bits(INT4, block=32)(s))
    assert kernels(optimized(model, tmp_path, level)) == [kernel]


def test_weight_only_rounds_its_input_unless_told_otherwise(tmp_path: Path) -> None:
    """Accuracy level 4 is the default of the conversion: int8 activations inside the kernel."""

    def level(entries: dict[str, str]) -> int:
        s = Sketch()
        model = optimized(s.model(few_bits(INT4, block=32)(s)), tmp_path, entries=entries)
        return next(int(a.i) for a in model.graph.node[0].attribute if a.name == "accuracy_level")

    assert level({}) == 4
    assert level({"session.qdq_matmulnbits_accuracy_level": "0"}) == 0


# ---------------------------------------------------------------- activations read twice


def residual(format: str) -> Draw:
    """conv -> (conv, Add) through one Q/DQ pair."""

    def draw(s: Sketch) -> str:
        def convolved(x: str) -> str:
            y = s.op("Conv", x, s.weight(8, 8, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            return s.quantized(y, format=format)

        first = convolved(s.quantized(s.input(1, 8, 9, 9), format=format))
        return s.quantized(s.op("Add", convolved(first), first), format=format)

    return draw


FAN_OUT = (
    Row(op="conv -> (conv, Add)", when="uint8", draw=residual("uint8"),
        kernels="QLinearConv QLinearConv QLinearAdd"),
    Row(op="conv -> (conv, Add)", when="int8: silently float", draw=residual("int8"),
        kernels="Conv Conv Add"),
    Row(op="conv", when="int8 with one reader: rewritten to uint8", draw=conv(format="int8", zero=0),
        kernels="QLinearConv"),
)  # fmt: skip


@parametrized(FAN_OUT)
def test_fan_out(row: Row, tmp_path: Path) -> None:
    check(row, tmp_path)


def test_a_pair_with_one_reader_is_rewritten_to_uint8(tmp_path: Path) -> None:
    s = Sketch()
    model = optimized(s.model(conv(format="int8", zero=0)(s)), tmp_path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    kernel = next(node for node in model.graph.node if node.op_type == "QLinearConv")
    assert types[kernel.input[2]] == types[kernel.input[7]] == TensorProto.UINT8


# ---------------------------------------------------------------- levels, FP8, slow fusions


@pytest.mark.parametrize(("level", "kernel"), [("basic", "Conv"), ("extended", "QLinearConv")])
def test_integer_kernels_appear_at_the_extended_level(level: str, kernel: str, tmp_path: Path) -> None:
    s = Sketch()
    assert kernels(optimized(s.model(conv()(s)), tmp_path, level)) == [kernel]


def float8(op: str) -> Callable[[Sketch], str]:
    def draw(s: Sketch) -> str:
        scale = s.constant(np.float32(0.1))
        zero = s.narrow(TensorProto.FLOAT8E4M3FN, ())

        def pair(x: str) -> str:
            return s.op("DequantizeLinear", s.op("QuantizeLinear", x, scale, zero), scale, zero)

        shape = {"Conv": ((1, 8, 9, 9), (8, 8, 3, 3)), "MatMul": ((5, 16), (16, 8))}[op]
        w = s.op("DequantizeLinear", s.narrow(TensorProto.FLOAT8E4M3FN, shape[1]), scale, zero)
        return pair(s.op(op, pair(s.input(*shape[0])), w))

    return draw


@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_float8_loads_at_the_basic_level_only(op: str, tmp_path: Path) -> None:
    s = Sketch()
    model = s.model(float8(op)(s))
    assert kernels(optimized(model, tmp_path, "basic")) == [op]
    with pytest.raises(Exception, match=r"QLinear(Conv|MatMul)"):
        optimized(model, tmp_path, "extended")


def test_an_add_before_a_norm_becomes_the_slow_skip_norm_unless_disabled(tmp_path: Path) -> None:
    s = Sketch()
    total = s.op("Add", s.input(2, 5, 16), s.input(2, 5, 16))
    model = s.model(s.op("LayerNormalization", total, s.floats(16), s.floats(16), axis=-1))
    assert Counter(kernels(optimized(model, tmp_path))) == {"SkipLayerNormalization": 1}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "kept.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, disabled_optimizers=["SkipLayerNormFusion"],
        providers=["CPUExecutionProvider"],
    )  # fmt: skip
    assert kernels(onnx.load(tmp_path / "kept.onnx")) == ["Add", "LayerNormalization"]


def dynamic(s: Sketch, x: str, scale: float) -> str:
    """DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul -> Add."""
    name = s.new()
    codes, step, zero = (f"{name}_{part}" for part in ("codes", "scale", "zero"))
    s.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [codes, step, zero], name=name))
    weight = s.constant(s.random.integers(1, 100, (16, 8)).astype(np.int8))
    total = s.op("MatMulInteger", codes, weight, zero)
    steps = s.op("Mul", step, s.constant(np.full(8, scale, np.float32)))
    return s.op("Add", s.op("Mul", s.op("Cast", total, to=TensorProto.FLOAT), steps), s.floats(8))


@pytest.mark.parametrize("shape", [(5, 16), ("n", 16), ("n", "length", 16)], ids=str)
def test_dynamic_quantization(shape: tuple[int | str, ...], tmp_path: Path) -> None:
    """One linear is one kernel; two linears that read one tensor share what is written twice."""
    s = Sketch()
    assert kernels(optimized(s.model(dynamic(s, s.input(*shape), SCALE)), tmp_path)) == [
        "DynamicQuantizeMatMul"
    ]
    s = Sketch()
    x = s.input(*shape)
    two = s.model(dynamic(s, x, SCALE), dynamic(s, x, 2 * SCALE))
    assert kernels(optimized(two, tmp_path)) == ["DynamicQuantizeLinear", *["MatMulIntegerToFloat"] * 2]
