"""What an operator needs inside, beside its operands and results: bytes by operator, as measured on a CPU.

oneDNN computes convolutions on copies of their operands in blocks of channels, one product after the other:

    y = x * w            x', w', y' and then y' and y        max(x + w, y)  more than x, w, y
    dx = dy * w          dy', w', dx'                        max(dy + w, x)  before dw is there
    dw = dy * x          dy', x', dw' and then dw' and dw    max(dy + x, w)

The other rows are copies: of an operand, or a result, that does not lie row by row.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.ir import pooling as _pooling  # noqa: F401 - registers the operators
from qcompiler.ir import storage as _storage  # noqa: F401 - registers the operators

aten, ops = torch.ops.aten, torch.ops.qcompiler

Inside = Callable[[Node], int]
"""Bytes that a call needs while it runs."""


def scratch(node: Node) -> int:
    """Of an operator of the table on a CPU; 0 of all others, whose results are all that they make."""
    formula = SCRATCH.get(node.target) if node.op == "call_function" else None
    if formula is None or value_of(node.args[0]).device.type != "cpu":
        return 0
    return int(formula(node))  # a shape may be symbolic


def convolved(node: Node) -> int:
    x, w, y = (value_of(each) for each in (*node.args[:2], node))
    return max(x.nbytes + w.nbytes, y.nbytes) if x.is_contiguous() else 0


def convolved_back(node: Node) -> int:
    dy, x, w = (value_of(each) for each in node.args[:3])
    if not x.is_contiguous():
        return 0  # channels that lie last are read as they are
    wanted: Any = node.args[-1]  # gradients: of the input, the weight, the bias
    first = max(dy.nbytes + w.nbytes, x.nbytes) - w.nbytes * wanted[1]
    second = max(dy.nbytes + x.nbytes, w.nbytes)
    return int(max(first * wanted[0], second * wanted[1]))


def gathered(*places: int) -> Inside:
    """Copies of operands that do not lie row by row."""

    def formula(node: Node) -> int:
        return sum(strided(value_of(node.args[place])) for place in places)

    return formula


def scattered(node: Node) -> int:
    """The result row by row, where it has to lie otherwise."""
    return strided(value_of(node))


def taps(copies: int, indices: Callable[[Node], Any]) -> Inside:
    """Bytes for each index, and the indices row by row where they lie otherwise."""

    def formula(node: Node) -> int:
        index = value_of(indices(node))
        return copies * index.numel() + strided(index)

    return formula


def strided(value: Tensor) -> int:
    """Bytes of a copy row by row; 0 of what needs none."""
    return 0 if value.is_contiguous() else value.numel() * value.itemsize


def value_of(node: Any) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


SCRATCH: Mapping[Any, Inside] = {
    aten.convolution.default: convolved,
    aten.convolution_backward.default: convolved_back,
    aten.gelu_backward.default: gathered(0, 1),
    aten.native_layer_norm.default: gathered(0),
    aten.native_layer_norm_backward.default: gathered(0, 1),
    ops.store.default: gathered(0),
    ops.store_mask.default: gathered(0),
    ops.recall.default: scattered,
    ops.recall_mask.default: scattered,
    ops.store_taps.default: taps(3, lambda node: node.args[0]),
    ops.recall_taps.default: taps(1, lambda node: node),
}
