"""The kernels as ops of torch, `torch.ops.qcompiler.triton_*`: importing this registers them.

Each has a reference on the CPU, which states its numbers, a fake implementation, and a kernel for CUDA.
"""

from qcompiler.backends.triton.ops.attention import append_kv, decode_attention
from qcompiler.backends.triton.ops.linear import fp8_linear, int8_linear
from qcompiler.backends.triton.ops.quantize import quantize_rows

__all__ = ["append_kv", "decode_attention", "fp8_linear", "int8_linear", "quantize_rows"]
