"""What computing an op on codes means, whoever does it: formula, operands, what is absorbed, for which calls.

A target names the kernel that it has for a row, and what that kernel does besides (`row`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from qcompiler.ir import arguments, spec
from qcompiler.rewrite import Trait
from qcompiler.target.base import KernelRow, Support

aten = torch.ops.aten
qc = torch.ops.qcompiler

INTEGER = Support(executes="integer")

CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
AVERAGES = (aten.avg_pool1d.default, aten.avg_pool2d.default)
MAXIMA = (aten.max_pool1d.default, aten.max_pool2d.default)
FUNCTIONS = (
    aten.gelu.default, aten.silu.default, aten.sigmoid.default, aten.tanh.default, aten.hardswish.default,
    aten.hardsigmoid.default, aten.leaky_relu.default, aten.elu.default,
)  # fmt: skip
MOVES = frozenset({
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default,
    aten.transpose.int, aten.t.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.slice.Tensor, aten.select.int, aten.expand.default, aten.pixel_shuffle.default,
})  # fmt: skip


def is_plain_sum(add: Node) -> bool:
    """x + alpha y with another alpha has no kernel."""
    return bool(arguments(add)["alpha"] == 1)


def has_matrix(linear: Node) -> bool:
    """A vector for weight has no output channels."""
    weight = spec(arguments(linear)["weight"])
    return weight is not None and len(weight.shape) == 2


def divides_as_torch(pool: Node) -> bool:
    """The kernel takes no divisor, and counts in full a window that hangs over the padding it includes."""
    given = arguments(pool)
    hangs_over = given["ceil_mode"] and given["count_include_pad"] and any(given["padding"])
    return given.get("divisor_override") is None and not hangs_over


def known(op: Any, formula: str, *operands: str, **more: Any) -> KernelRow:
    return KernelRow(op=op, kernel="", formula=formula, operands=operands, **more)


WEIGHED: Any = {"weight": "weight", "bias": "bias", "absorbs": Trait.CLAMPS, "starts": True}

ROWS: Mapping[Any, KernelRow] = {
    row.op: row
    for row in (
        *(known(op, "conv", "input", **WEIGHED) for op in CONVOLUTIONS),
        known(aten.linear.default, "linear", "input", output="optional", where=has_matrix, **WEIGHED),
        known(aten.add.Tensor, "add", "self", "other", absorbs=Trait.CLAMPS, where=is_plain_sum),
        known(aten.mul.Tensor, "mul", "self", "other", absorbs=Trait.CLAMPS),
        known(qc.global_avg_pool.default, "global_avg_pool", "x"),
        *(known(op, "avg_pool", "self", where=divides_as_torch) for op in AVERAGES),
        *(known(op, "max_pool", "self", output="same") for op in MAXIMA),
        known(aten.cat.default, "concat", "tensors"),
        known(qc.attention.default, "attention", "q", "k", "v", starts=True),
        *(known(op, "unary", "self") for op in FUNCTIONS),
    )
}


def row(op: Any, kernel: str, **more: Any) -> KernelRow:
    """How a target computes an op, by a kernel of its own."""
    return replace(ROWS[op], kernel=kernel, **more)
