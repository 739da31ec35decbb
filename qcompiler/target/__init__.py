"""Targets: what runs where, as data. A new target is a new file beside `cpu.py` and a line here."""

from qcompiler.target.base import (
    TARGETS,
    AttentionKernel,
    KernelRow,
    Support,
    Target,
    WeightOnly,
    find_target,
    register_target,
)
from qcompiler.target.cpu import ONNX_RUNTIME_CPU
from qcompiler.target.cpu_tvm import OWN_KERNELS_CPU
from qcompiler.target.cuda import NVIDIA_GPU, WITHOUT_FP8

__all__ = [
    "NVIDIA_GPU", "ONNX_RUNTIME_CPU", "OWN_KERNELS_CPU", "TARGETS", "WITHOUT_FP8", "AttentionKernel",
    "KernelRow", "Support", "Target", "WeightOnly", "find_target", "register_target",
]  # fmt: skip
