"""NVIDIA GPUs through kernels of our own: what backends/triton computes on codes of 8 bits.

Linears alone, on a range of each row of their input and of each output channel of their weight. Codes are
symmetric; sums of int8 are exact. All else, and what a linear returns, is in the model's floats.
"""

from dataclasses import replace

import torch

from qcompiler.target.base import Support, Target, register_target
from qcompiler.target.rows import INTEGER, row

aten = torch.ops.aten

KERNEL = "row-scaled linear"
FP8 = Support(executes="fp8")
NO_KERNEL = Support(executes="float", reason="there is no kernel for this format yet")
NO_UNITS = Support(executes="float", reason="only GPUs of compute capability 9.0 have kernels for it")

NVIDIA_GPU = register_target(
    Target(
        name="cuda",
        backend="triton",
        activation="int8",
        weight="int8",
        activations={"int8": INTEGER, "float8_e4m3fn": FP8, "uint8": NO_KERNEL},
        weights={"int8": INTEGER, "float8_e4m3fn": FP8, "int4": NO_KERNEL, "uint4": NO_KERNEL},
        rows=(row(aten.linear.default, KERNEL, to_float=KERNEL, output="never"),),
        dynamic_kernel=KERNEL,
        dynamic_formats=("int8", "float8_e4m3fn"),
        range_of="row",
        calibrated=False,
        floats=frozenset({torch.float32, torch.bfloat16, torch.float16}),
    )
)

WITHOUT_FP8 = register_target(
    replace(
        NVIDIA_GPU,
        name="cuda-sm80",
        activations={**NVIDIA_GPU.activations, "float8_e4m3fn": NO_UNITS},
        weights={**NVIDIA_GPU.weights, "float8_e4m3fn": NO_UNITS},
        dynamic_formats=("int8",),
    )
)
