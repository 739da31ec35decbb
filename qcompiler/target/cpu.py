"""x86-64 CPUs through ONNX Runtime: what its CPU provider computes on integers (measured on 1.31.1).

Activations are uint8 because its integer kernels are uint8 x int8; an int8 activation with two readers
silently stays float. Each row is one entry of the measured table in docs/ort.md.
"""

import torch
from torch.fx import Node

from qcompiler.ir import arguments, spec
from qcompiler.rewrite import Trait
from qcompiler.target.base import AttentionKernel, KernelRow, Support, Target, WeightOnly, register_target

aten = torch.ops.aten
qc = torch.ops.qcompiler

INTEGER = Support(executes="integer")
NO_KERNEL = Support(executes="float", reason="ONNX Runtime has no integer kernel for this format")
FAN_OUT = Support(
    executes="float",
    reason="ONNX Runtime on x86-64 computes uint8 activations only; an int8 one with two readers stays float",
)
BASIC_LEVEL = Support(
    executes="float", reason="FP8 is stored, and computed in float at the basic optimization level"
)


def convolution(op: object) -> KernelRow:
    return KernelRow(
        op=op, kernel="QLinearConv", formula="conv", operands=("input",), weight="weight", bias="bias",
        output="required", absorbs=Trait.CLAMPS, starts=True,
    )  # fmt: skip


def is_plain_sum(add: Node) -> bool:
    """x + alpha y with another alpha has no kernel."""
    return bool(arguments(add)["alpha"] == 1)


def has_matrix(linear: Node) -> bool:
    """A vector for weight has no output channels."""
    weight = spec(arguments(linear)["weight"])
    return weight is not None and len(weight.shape) == 2


def divides_as_torch(pool: Node) -> bool:
    """The kernel takes no divisor, and counts in full a window that hangs over the padding it includes."""
    given = arguments(pool)
    hangs_over = given["ceil_mode"] and given["count_include_pad"] and any(given["padding"])
    return given.get("divisor_override") is None and not hangs_over


ROWS = (
    convolution(aten.conv1d.default),
    convolution(aten.conv2d.default),
    convolution(aten.conv3d.default),
    KernelRow(
        op=aten.linear.default, kernel="QGemm", formula="linear", operands=("input",), weight="weight",
        bias="bias", output="optional", to_float="MatMulIntegerToFloat", absorbs=Trait.CLAMPS, starts=True,
        where=has_matrix,
    ),
    KernelRow(op=aten.add.Tensor, kernel="QLinearAdd", formula="add", operands=("self", "other"),
              absorbs=Trait.CLAMPS, where=is_plain_sum),
    KernelRow(op=aten.mul.Tensor, kernel="QLinearMul", formula="mul", operands=("self", "other"),
              absorbs=Trait.CLAMPS),
    KernelRow(op=qc.global_avg_pool.default, kernel="QLinearGlobalAveragePool", formula="global_avg_pool",
              operands=("x",)),
    KernelRow(op=aten.avg_pool2d.default, kernel="QLinearAveragePool", formula="avg_pool", operands=("self",),
              where=divides_as_torch),
    KernelRow(op=aten.max_pool2d.default, kernel="MaxPool", formula="max_pool", operands=("self",),
              output="same"),
    KernelRow(op=aten.cat.default, kernel="QLinearConcat", formula="concat", operands=("tensors",)),
    KernelRow(op=aten.sigmoid.default, kernel="QLinearSigmoid", formula="unary", operands=("self",)),
    KernelRow(op=aten.leaky_relu.default, kernel="QLinearLeakyRelu", formula="unary", operands=("self",)),
)  # fmt: skip

MOVES = frozenset({
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default,
    aten.transpose.int, aten.t.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.slice.Tensor, aten.select.int, aten.expand.default, aten.pixel_shuffle.default,
})  # fmt: skip

ONNX_RUNTIME_CPU = register_target(
    Target(
        name="cpu",
        backend="ort",
        kin={"tvm": "cpu-tvm"},
        activation="uint8",
        weight="int8",
        activations={
            "uint8": INTEGER,
            "int8": FAN_OUT,
            "int16": NO_KERNEL,
            "uint16": NO_KERNEL,
            "float8_e4m3fn": BASIC_LEVEL,
            "float8_e5m2": BASIC_LEVEL,
        },
        weights={
            "int8": INTEGER,
            "uint8": NO_KERNEL,
            "int4": NO_KERNEL,
            "uint4": NO_KERNEL,
            "float8_e4m3fn": BASIC_LEVEL,
            "float8_e5m2": BASIC_LEVEL,
        },
        rows=ROWS,
        weight_only=(
            WeightOnly(format="int4", kernel="MatMulNBits", blocks=(16, 32, 64, 128)),
            WeightOnly(format="uint4", kernel="MatMulNBits", blocks=(16, 32, 64, 128)),
            WeightOnly(format="int8", kernel="MatMulNBits", blocks=(0, 32, 64, 128)),
        ),
        dynamic_kernel="MatMulIntegerToFloat",
        rotary=True,
        attention=AttentionKernel(name="GroupQueryAttention", multiple=8, rotary_multiple=16),
        # A step of a decoder is 8 % faster so with int4 weights and 4 % with int8 ones; from 4 rows on it is
        # even or, with dynamic ranges, 1 to 3 % slower, since what was computed as one is then split.
        joins=frozenset({"weight-only", "dynamic"}),
        join_rows=1,
        carries_moves=MOVES,
        opset={
            "uint8": 13,
            "int8": 13,
            "int32": 13,
            "int16": 21,
            "uint16": 21,
            "int4": 21,
            "uint4": 21,
            "float8_e4m3fn": 19,
            "float8_e5m2": 19,
        },
        features=("avx512_vnni", "avx_vnni"),
        range_macs=9.0,
        weight_limit=64,
    )
)
