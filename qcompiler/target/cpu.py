"""x86-64 CPUs through ONNX Runtime: what its CPU provider computes on integers (measured on 1.31.1).

Activations are uint8 because its integer kernels are uint8 x int8; an int8 activation with two readers
silently stays float. Each row is one entry of the measured table in docs/ort.md.
"""

import torch

from qcompiler.target.base import AttentionKernel, Support, Target, WeightOnly, register_target
from qcompiler.target.rows import CONVOLUTIONS, INTEGER, MOVES, row

aten = torch.ops.aten
qc = torch.ops.qcompiler

NO_KERNEL = Support(executes="float", reason="ONNX Runtime has no integer kernel for this format")
FAN_OUT = Support(
    executes="float",
    reason="ONNX Runtime on x86-64 computes uint8 activations only; an int8 one with two readers stays float",
)
BASIC_LEVEL = Support(
    executes="float", reason="FP8 is stored, and computed in float at the basic optimization level"
)


ROWS = (
    *(row(op, "QLinearConv") for op in CONVOLUTIONS),
    row(aten.linear.default, "QGemm", to_float="MatMulIntegerToFloat"),
    row(aten.add.Tensor, "QLinearAdd"),
    row(aten.mul.Tensor, "QLinearMul"),
    row(qc.global_avg_pool.default, "QLinearGlobalAveragePool"),
    row(aten.avg_pool2d.default, "QLinearAveragePool"),
    row(aten.max_pool2d.default, "MaxPool"),
    row(aten.cat.default, "QLinearConcat"),
    row(aten.sigmoid.default, "QLinearSigmoid"),
    row(aten.leaky_relu.default, "QLinearLeakyRelu"),
)

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
        joins={"weight-only": 1, "dynamic": 1},
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
