"""NVIDIA GPUs through kernels of our own: what backends/triton computes on codes of 8 bits.

Linears alone, on a range of each row of their input, or on one that is known before, and of each output
channel of their weight. Codes are symmetric; sums of int8 are exact. All else, and what a linear returns, is
in the model's floats. Models in halves may instead keep their inputs as they are, and have weights of few
bits in groups.
"""

from dataclasses import replace

import torch

from qcompiler.target.base import Support, Target, WeightOnly, register_target
from qcompiler.target.rows import INTEGER, row

aten = torch.ops.aten

KERNEL = "linear on codes"
FP8 = Support(executes="fp8")
NO_KERNEL = Support(executes="float", reason="there is no kernel for this format yet")
STORED = Support(executes="float", reason="kernels read it as the weight of a product of floats")
NO_UNITS = Support(executes="float", reason="only GPUs of compute capability 9.0 have kernels for it")

NVIDIA_GPU = register_target(
    Target(
        name="cuda",
        backend="triton",
        activation="int8",
        weight="int8",
        activations={"int8": INTEGER, "float8_e4m3fn": FP8, "uint8": NO_KERNEL},
        weights={"int8": INTEGER, "float8_e4m3fn": FP8, "int4": STORED, "uint4": STORED},
        rows=(row(aten.linear.default, KERNEL, to_float=KERNEL, output="never"),),
        weight_only=tuple(
            WeightOnly(
                format=name,
                kernel="weight-only linear",
                blocks=blocks,
                activation_bits=None,
                scales="bfloat16",
                reads=frozenset({torch.bfloat16, torch.float16}),
                outputs=64,
                inputs=32,
            )
            for name, blocks in (
                ("int4", (32, 64, 128)),
                ("uint4", (32, 64, 128)),
                ("int8", (0, 32, 64, 128)),
            )
        ),
        dynamic_kernel=KERNEL,
        dynamic_formats=("int8", "float8_e4m3fn"),
        range_of="row",
        dynamic_blocks={"float8_e4m3fn": 128},
        block_kernel="block-scaled linear",
        calibrated_formats=("int8",),
        zero_points=False,
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
