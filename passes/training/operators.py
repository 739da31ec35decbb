"""The operators that multiply two tensors, in float and in few bits: one row for each.

What reads a graph asks this table which of its nodes are products, what these multiply, and what is heavy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qcompiler.ir import convolutions as _convolutions  # noqa: F401 - registers the operators
from qcompiler.ir import products as _products  # noqa: F401 - registers the operators

aten = torch.ops.aten
ops = torch.ops.qcompiler


@dataclass(frozen=True, kw_only=True)
class Operator:
    """How an operator multiplies.

    family: that of the gradients of its products, too. operands: their places, None where a mask tells.
    is_gradient: it takes a gradient, and is no product of forward. is_low: it computes in few bits.
    """

    family: str
    operands: tuple[int, int] | None = (0, 1)
    is_gradient: bool = False
    is_low: bool = False


PRODUCTS: Mapping[Any, Operator] = {
    aten.mm.default: Operator(family="mm"),
    aten.addmm.default: Operator(family="mm", operands=(1, 2)),
    aten.bmm.default: Operator(family="bmm"),
    aten.convolution.default: Operator(family="convolution"),
    aten.convolution_backward.default: Operator(family="convolution", operands=None, is_gradient=True),
    ops.low_bit_mm.default: Operator(family="mm", is_low=True),
    ops.low_bit_convolution.default: Operator(family="convolution", is_low=True),
    ops.low_bit_convolution_input.default: Operator(family="convolution", is_gradient=True, is_low=True),
    ops.low_bit_convolution_weight.default: Operator(family="convolution", is_gradient=True, is_low=True),
}
ATTENTION = frozenset({
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
})  # fmt: skip
HEAVY = frozenset({*ATTENTION, *(target for target, row in PRODUCTS.items() if not row.is_gradient)})
"""What costs a step its time in forward."""
