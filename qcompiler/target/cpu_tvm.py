"""CPUs through kernels of our own: what backends/tvm computes on integers.

A convolution adds the other branch of a residual block to its sums before it rounds, so that the sum costs
no pass over memory and one rounding less.
"""

import math

import torch
from torch.fx import Node

from qcompiler.ir import arguments, spec
from qcompiler.target.base import AttentionKernel, Support, Target, WeightOnly, register_target
from qcompiler.target.costs import Behind, Costs, Way
from qcompiler.target.rows import AVERAGES, FUNCTIONS, INTEGER, MAXIMA, MOVES, row

aten = torch.ops.aten
qc = torch.ops.qcompiler

NO_KERNEL = Support(executes="float", reason="there is no kernel for this format yet")
ONLY_STORED = Support(executes="float", reason="linears read it, and compute on 8 bits inside of a group")


def is_by_token(attention: Node) -> bool:
    """The kernel reads heads side by side, in rows of tokens."""
    queries = spec(arguments(attention)["q"])
    return queries is not None and len(queries.shape) == 3


ROWS = (
    *(row(op, "convolution", adds=True) for op in (aten.conv1d.default, aten.conv2d.default)),
    row(aten.linear.default, "convolution", adds_floats=True),
    row(aten.add.Tensor, "sum"),
    row(aten.mul.Tensor, "product"),
    row(qc.global_avg_pool.default, "global average"),
    *(row(op, "average") for op in AVERAGES),
    *(row(op, "maximum") for op in MAXIMA),
    row(aten.cat.default, "concatenation"),
    row(qc.attention.default, "attention", where=is_by_token),
    *(row(op, "table", links=True) for op in FUNCTIONS),  # all that they make of the 256 codes
)

CALL = 0.4  # microseconds from a step of a program to the next

# Of one core of Zen 4 with planes in the second cache, in short runs on a busy machine; `python -m
# benchmarks.fusions` measures them, and has not run on a quiet one yet.
COSTS = Costs(
    products=230e3,
    bandwidth=60e3,
    behind={
        "sum of codes": Behind(
            fused=Way(rate=40e3, bytes=1), apart=Way(rate=10.5e3, bytes=3, start=CALL)
        ),
        "table": Behind(fused=Way(rate=250e3), apart=Way(rate=45e3, bytes=2, start=CALL)),
        "codes": Behind(fused=Way(rate=19e3, bytes=1), apart=Way(rate=9.3e3, bytes=5, start=CALL)),
        # Of linears: joined, torch takes their rows apart again; apart, each but the first is a call more.
        "siblings": Behind(fused=Way(rate=2.4e3, start=12.0), apart=Way(rate=math.inf, start=CALL)),
        # Apart, torch computes it: copies there and back, and its own way to an op.
        "sum of floats": Behind(fused=Way(rate=50e3, bytes=4), apart=Way(rate=5e3, bytes=12, start=6.0)),
    },
)  # fmt: skip

OWN_KERNELS_CPU = register_target(
    Target(
        name="cpu-tvm",
        backend="tvm",
        kin={"ort": "cpu"},
        activation="uint8",
        weight="int8",
        activations={"uint8": INTEGER, "int8": NO_KERNEL},
        weights={"int8": INTEGER, "uint8": NO_KERNEL, "int4": ONLY_STORED, "uint4": ONLY_STORED},
        rows=ROWS,
        weight_only=tuple(
            WeightOnly(format=name, kernel="few-bit linear", blocks=(0, 16, 32, 64, 128))
            for name in ("int4", "uint4", "int8")
        ),
        dynamic_kernel="convolution",
        rotary=True,
        attention=AttentionKernel(name="cached attention", multiple=16, rotary_multiple=16),
        joins={"weight-only": None},
        range_macs=9.0,
        carries_moves=MOVES,
        by_token=True,
        costs=COSTS,
    )
)
