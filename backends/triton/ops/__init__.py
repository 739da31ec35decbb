"""The kernels as ops of torch, `torch.ops.qcompiler.triton_*`: importing this registers them.

Each has a reference on the CPU, which states its numbers, a fake implementation, and a kernel for CUDA.
"""

from qcompiler.backends.triton.ops.linear import fp8_linear, int8_linear
from qcompiler.backends.triton.ops.quantize import quantize_rows
from qcompiler.backends.triton.ops.weight_only import weight_only_linear

__all__ = ["fp8_linear", "int8_linear", "quantize_rows", "weight_only_linear"]
