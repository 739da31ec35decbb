"""The operators of language models as ONNX: RMS norm in the form that is fused, rotary positions, and
attention over a cache.

rms_norm(x, w)                 -->  x / sqrt(mean(x^2) + eps) * w      becomes SimplifiedLayerNormalization
rotary(x, cos, sin)            -->  RotaryEmbedding of opset 23, or the products that it is made of
cached_attention(qkv, ...)     -->  com.microsoft GroupQueryAttention  its queries, keys and values packed
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch

from qcompiler.backends.ort.contrib import contrib
from qcompiler.backends.ort.requirements import ATTENTION_OPSET

aten = torch.ops.aten
qc = torch.ops.qcompiler
INT32 = onnx.TensorProto.INT32


def language(op: Any, opset: int) -> dict[Any, Callable[..., Any]]:
    """The translations of one export, in the operators of one opset."""
    # Made once: a shape and a table per layer are as many operators in every step.
    batches: dict[str, Any] = {}
    tables: dict[tuple[str, str], Any] = {}

    def batch_of(x: Any) -> Any:
        size = str(x.shape[0])
        if size not in batches:
            batches[size] = op.Shape(x, start=0, end=1)
        return batches[size]

    def rms_norm(x: Any, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
        """Division by the root, since ONNX Runtime does not fuse a product with its reciprocal."""
        axes = op.Constant(value_ints=list(range(-len(shape), 0)))
        mean = op.ReduceMean(op.Pow(x, op.Constant(value_float=2.0)), axes, keepdims=1)
        small = torch.finfo(torch.float32).eps if eps is None else eps
        normed = op.Div(x, op.Sqrt(op.Add(mean, op.Constant(value_float=small))))
        return normed if weight is None else op.Mul(normed, weight)

    def rotary(x: Any, cos: Any, sin: Any, heads: int) -> Any:
        """The kernel wants a table per sequence; before it there are products, of heads [B, H, T, D]."""
        if opset >= ATTENTION_OPSET:
            return op.RotaryEmbedding(x, per_sequence(x, cos), per_sequence(x, sin), num_heads=heads)
        first, second = op.Split(x, axis=-1, num_outputs=2)
        left, right = (
            op.Sub(op.Mul(first, cos), op.Mul(second, sin)),
            op.Add(op.Mul(second, cos), op.Mul(first, sin)),
        )
        return op.Concat(left, right, axis=-1)

    def per_sequence(x: Any, table: Any) -> Any:
        key = (str(table.name), str(x.shape[0]))
        if key not in tables:
            one = op.Constant(value_ints=[1])
            tables[key] = op.Expand(table, op.Concat(batch_of(x), one, one, axis=0))
        return tables[key]

    def cached_attention(
        qkv: Any, past_keys: Any, past_values: Any, positions: Any, cos: Any, sin: Any,
        heads: int, scale: float | None = None,
    ) -> Any:  # fmt: skip
        """The kernel wants the last position once per sequence, and the number of rows up to it."""
        last = op.Cast(op.Gather(positions, op.Constant(value_ints=[-1])), to=INT32)
        total = op.Add(last, op.Cast(op.Constant(value_ints=[1]), to=INT32))
        given = {} if scale is None else {"scale": scale}
        return contrib("GroupQueryAttention")(
            qkv, None, None, past_keys, past_values, op.Expand(last, batch_of(qkv)), total, cos, sin,
            num_heads=heads, kv_num_heads=past_keys.shape[1], do_rotary=int(cos is not None), **given,
        )  # fmt: skip

    return {
        aten.rms_norm.default: rms_norm,
        qc.rotary.default: rotary,
        qc.cached_attention.default: cached_attention,
    }
