"""Our operators as ONNX operators of one opset, for torch's exporter.

custom_translation_table = translations(opset, portable)
"""

from collections.abc import Callable
from typing import Any

import onnxscript
import torch

from qcompiler.backends.ort.contrib import contrib
from qcompiler.backends.ort.language import language

qc = torch.ops.qcompiler


def translations(opset: int, *, portable: bool) -> dict[Any, Callable[..., Any]]:
    """The table for one opset: a model may not hold an operator that is newer than itself.

    A portable model holds operators of the ONNX standard only.
    """
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

    def integer_linear(
        q: Any, scale: Any, zero_point: Any, weight: Any, weight_scale: Any, bias: Any = None
    ) -> Any:
        """MatMulIntegerToFloat, or the MatMulInteger -> Cast -> Mul -> Add that it is made of."""
        if not portable:
            fused = contrib("MatMulIntegerToFloat")
            return fused(q, weight, scale, weight_scale, zero_point, None, bias)
        accumulator = op.MatMulInteger(q, weight, zero_point)
        result = op.Mul(op.Cast(accumulator, to=1), op.Mul(scale, weight_scale))
        return result if bias is None else op.Add(result, bias)

    def attention(
        q: Any, k: Any, v: Any, mask: Any, heads: int, kv_heads: int, scale: float, causal: bool
    ) -> Any:
        counts = {"q_num_heads": heads, "kv_num_heads": kv_heads} if len(q.shape) == 3 else {}
        attended, *_ = op.Attention(q, k, v, mask, scale=scale, is_causal=int(causal), **counts)
        return attended

    def pad_codes(q: Any, zero_point: Any, pads: list[int]) -> Any:
        begins, ends = pads[-2::-2], pads[-1::-2]  # ONNX goes from the first axis on
        rest = [0] * (len(q.shape) - len(begins))
        amounts = op.Constant(value_ints=[*rest, *begins, *rest, *ends])
        return op.Pad(q, amounts, zero_point)

    def space_to_depth(x: Any, block: int) -> Any:
        return op.SpaceToDepth(x, blocksize=block)

    return {
        qc.quantize.default: quantize,
        qc.dequantize.default: dequantize,
        qc.global_avg_pool.default: global_avg_pool,
        qc.dynamic_quantize.default: dynamic_quantize,
        qc.integer_linear.default: integer_linear,
        qc.attention.default: attention,
        qc.pad_codes.default: pad_codes,
        qc.space_to_depth.default: space_to_depth,
        **language(op, opset),
    }


def placement(axis: int | None, block: int) -> dict[str, int]:
    """ONNX ignores the axis of a scalar scale; its default of 1 would be refused for vectors."""
    return ({} if axis is None else {"axis": axis}) | ({"block_size": block} if block else {})
