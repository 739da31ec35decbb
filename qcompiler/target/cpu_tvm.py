"""CPUs through kernels of our own: what backends/tvm computes on integers.

A convolution adds the other branch of a residual block to its sums before it rounds, so that the sum costs
no pass over memory and one rounding less.
"""

import math

import torch
from torch.fx import Node

from qcompiler.ir import arguments, spec
from qcompiler.rewrite import Trait
from qcompiler.target.base import AttentionKernel, KernelRow, Support, Target, WeightOnly, register_target
from qcompiler.target.costs import Behind, Costs, Way
from qcompiler.target.cpu import INTEGER, MOVES, divides_as_torch, has_matrix, is_plain_sum

aten = torch.ops.aten
qc = torch.ops.qcompiler

NO_KERNEL = Support(executes="float", reason="there is no kernel for this format yet")
ONLY_STORED = Support(executes="float", reason="linears read it, and compute on 8 bits inside of a group")

# Of one number: all that they make of the 256 codes is a table.
FUNCTIONS = (
    aten.gelu.default, aten.silu.default, aten.sigmoid.default, aten.tanh.default, aten.hardswish.default,
    aten.hardsigmoid.default, aten.leaky_relu.default, aten.elu.default,
)  # fmt: skip


def is_by_token(attention: Node) -> bool:
    """The kernel reads heads side by side, in rows of tokens."""
    queries = spec(arguments(attention)["q"])
    return queries is not None and len(queries.shape) == 3


def convolution(op: object) -> KernelRow:
    return KernelRow(
        op=op, kernel="convolution", formula="conv", operands=("input",), weight="weight", bias="bias",
        absorbs=Trait.CLAMPS, adds=True, starts=True,
    )  # fmt: skip


ROWS = (
    convolution(aten.conv1d.default),
    convolution(aten.conv2d.default),
    KernelRow(
        op=aten.linear.default, kernel="convolution", formula="linear", operands=("input",), weight="weight",
        bias="bias", output="optional", absorbs=Trait.CLAMPS, adds_floats=True, starts=True, where=has_matrix,
    ),
    KernelRow(op=aten.add.Tensor, kernel="sum", formula="add", operands=("self", "other"),
              absorbs=Trait.CLAMPS, where=is_plain_sum),
    KernelRow(op=aten.mul.Tensor, kernel="product", formula="mul", operands=("self", "other"),
              absorbs=Trait.CLAMPS),
    KernelRow(op=qc.global_avg_pool.default, kernel="global average", formula="global_avg_pool",
              operands=("x",)),
    *(KernelRow(op=op, kernel="average", formula="avg_pool", operands=("self",), where=divides_as_torch)
      for op in (aten.avg_pool1d.default, aten.avg_pool2d.default)),
    *(KernelRow(op=op, kernel="maximum", formula="max_pool", operands=("self",), output="same")
      for op in (aten.max_pool1d.default, aten.max_pool2d.default)),
    KernelRow(op=aten.cat.default, kernel="concatenation", formula="concat", operands=("tensors",)),
    KernelRow(op=qc.attention.default, kernel="attention", formula="attention", operands=("q", "k", "v"),
              starts=True, where=is_by_token),
    *(KernelRow(op=op, kernel="table", formula="unary", operands=("self",), links=True) for op in FUNCTIONS),
)  # fmt: skip

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
        joins=frozenset({"weight-only"}),
        join_rows=math.inf,  # costs tell
        range_macs=9.0,
        carries_moves=MOVES,
        by_token=True,
        costs=COSTS,
    )
)
