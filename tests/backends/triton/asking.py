"""What a model asks of a device when it runs, where there is no device, and Triton need not be there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.engine.executable import TritonExecutable
from qcompiler.backends.triton.engine.readings import readings_of
from qcompiler.backends.triton.ops import blocks, known, linear, onward, quantize, weight_only
from qcompiler.backends.triton.tuning.asked import linears_in, problems_of
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.ir import evaluate
from qcompiler.ir.graph import operator_of

ops = torch.ops.qcompiler
ON_A_DEVICE = {
    ops.triton_int8_linear.default: linear.int8_on_cuda,
    ops.triton_fp8_linear.default: linear.fp8_on_cuda,
    ops.triton_linear_codes.default: onward.codes_on_cuda,
    ops.triton_linear_amax.default: onward.amax_on_cuda,
    ops.triton_quantize_rows.default: quantize.on_cuda,
    ops.triton_quantize_by_amax.default: known.by_amax_on_cuda,
    ops.triton_quantize_by_scale.default: known.by_scale_on_cuda,
    ops.triton_quantize_blocks.default: blocks.quantize_on_cuda,
    ops.triton_fp8_block_linear.default: blocks.on_cuda,
    ops.triton_weight_only_linear.default: weight_only.on_cuda,
}
KERNELS = ("int8_matmul", "fp8_matmul", "fp8_block_matmul")


def asked(executable: TritonExecutable, inputs: list[Tensor]) -> list[str]:
    """The problems that ops look up, in their order: all is as on a device, but nothing is launched."""
    found: dict[str, None] = {}

    def scheduled(problem: Problem, device: torch.device, default: Configuration) -> Configuration:
        found[problem.text] = None
        return default

    def compute(node: Node, args: Any, kwargs: dict[str, Any], _: Mapping[Node, Any]) -> Any:
        if node.target in ON_A_DEVICE:
            ON_A_DEVICE[node.target](*args, **kwargs)
        return operator_of(node)(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for module in (linear, quantize, blocks, known, weight_only):
            patch.setattr(module, "capability", lambda device: 90)
            patch.setattr(module, "scheduled", scheduled)
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        for name in ("quantize", "blocks", "known", "weight_only", "launching", *KERNELS):
            patch.setitem(sys.modules, f"qcompiler.backends.triton.kernels.{name}", unlaunched(name))
        device = torch.device("cpu")
        evaluate(executable.on(device, inputs), inputs, evaluate_node=compute)
    return [*found]


def unlaunched(name: str) -> ModuleType:
    """What ops import of a module of kernels, without the kernels."""

    def nothing(*given: Any, **how: Any) -> None:
        """In the place of a launch."""

    module = ModuleType(name)
    module.__dict__.update(launch=nothing, launch_product=nothing)
    module.__dict__.update({kernel: type(kernel, (), {}) for kernel in KERNELS})
    return module


def measured(executable: TritonExecutable, M: int) -> set[str]:
    """What `qcompiler tune MODEL` measures for calls of M rows."""
    readings = readings_of(executable.layers.found)
    return {one.text for each in linears_in(readings) for one in problems_of(each, readings, M)}
