"""The kernels as ops of torch, `torch.ops.qcompiler.triton_*`: importing this registers them.

Each has a reference on the CPU, which states its numbers, a fake implementation, and a kernel for CUDA.
"""

from qcompiler.backends.triton.ops.accumulate import accumulate
from qcompiler.backends.triton.ops.attention import append_kv, decode_attention
from qcompiler.backends.triton.ops.blocks import fp8_block_linear, quantize_blocks, quantize_tiles
from qcompiler.backends.triton.ops.hadamard import hadamard_quantize
from qcompiler.backends.triton.ops.known import quantize_by_amax, quantize_by_scale
from qcompiler.backends.triton.ops.linear import fp8_linear, int8_linear
from qcompiler.backends.triton.ops.norm import norm_quantize
from qcompiler.backends.triton.ops.onward import linear_amax, linear_codes
from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.backends.triton.ops.quantize_both import quantize_both
from qcompiler.backends.triton.ops.training import low_bit_linear, trained_linear
from qcompiler.backends.triton.ops.weight_only import weight_only_linear

__all__ = [
    "accumulate",
    "append_kv",
    "decode_attention",
    "fp8_block_linear",
    "fp8_linear",
    "hadamard_quantize",
    "int8_linear",
    "linear_amax",
    "linear_codes",
    "low_bit_linear",
    "norm_quantize",
    "quantize_blocks",
    "quantize_both",
    "quantize_by_amax",
    "quantize_by_scale",
    "quantize_rows",
    "quantize_tiles",
    "trained_linear",
    "weight_only_linear",
]
