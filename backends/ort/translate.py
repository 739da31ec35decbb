"""Our operators as ONNX operators of one opset, for torch's exporter.

custom_translation_table = translations(opset)
"""

from collections.abc import Callable
from typing import Any

import onnxscript
import torch

from qcompiler.backends.ort.language import language

qc = torch.ops.qcompiler


def translations(opset: int) -> dict[Any, Callable[..., Any]]:
    """The table for one opset: a model may not hold an operator that is newer than itself."""
    op = getattr(onnxscript, f"opset{opset}")

    def quantize(
        x: Any, scale: Any, zero_point: Any, format: str, axis: int | None = None, block: int = 0
    ) -> Any:
        return op.QuantizeLinear(x, scale, zero_point, **placement(axis, block))

    def dequantize(
        q: Any, scale: Any, zero_point: Any, format: str, axis: int | None = None, block: int = 0
    ) -> Any:
        return op.DequantizeLinear(q, scale, zero_point, **placement(axis, block))

    def global_avg_pool(x: Any) -> Any:
        return op.GlobalAveragePool(x)

    def dynamic_quantize(x: Any) -> Any:
        return op.DynamicQuantizeLinear(x)

    def integer_matmul(q: Any, scale: Any, zero_point: Any, weight: Any, weight_scale: Any) -> Any:
        """MatMulInteger -> Cast -> Mul: the form that ONNX Runtime fuses into MatMulIntegerToFloat."""
        accumulator = op.MatMulInteger(q, weight, zero_point)
        return op.Mul(op.Cast(accumulator, to=1), op.Mul(scale, weight_scale))

    return {
        qc.quantize.default: quantize,
        qc.dequantize.default: dequantize,
        qc.global_avg_pool.default: global_avg_pool,
        qc.dynamic_quantize.default: dynamic_quantize,
        qc.integer_matmul.default: integer_matmul,
        **language(op),
    }


def placement(axis: int | None, block: int) -> dict[str, int]:
    """ONNX ignores the axis of a scalar scale; its default of 1 would be refused for vectors."""
    return ({} if axis is None else {"axis": axis}) | ({"block_size": block} if block else {})
