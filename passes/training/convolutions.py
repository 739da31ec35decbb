"""Computing a convolution, forward or backward, in few bits; backward operators are `apart` before.

convolution(x, w, b)                      -->  low_bit_convolution(x, w) + b
convolution_backward(dy, x, w, 100)[0]    -->  low_bit_convolution_input(dy, w)
convolution_backward(dy, x, w, 010)[1]    -->  low_bit_convolution_weight(dy, x)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.ir import convolutions as _operators  # noqa: F401 - registers them
from qcompiler.numerics.operands import IN_BLOCKS
from qcompiler.passes.training.graphs import called, inlined
from qcompiler.passes.training.joint import operands
from qcompiler.training_recipe import Product

ops = torch.ops.qcompiler
aten = torch.ops.aten


def refusal(node: Node, product: Product) -> str:
    """Why a convolution stays in float; "" where it need not."""
    transposed, _, groups = geometry(node)[3:]
    left, right = operands(node)
    shapes = [side.meta["val"].shape for side in (left, right, weight(node), result(node))]
    if not all(isinstance(length, int) for shape in shapes for length in shape):
        return "its shape is symbolic; compile with dynamic=False"
    if transposed:
        return "a transposed convolution is not computed in few bits"
    if groups > 1 and weight(node).meta["val"].shape[1] == 1:
        return "a depthwise convolution sums too few products to gain from few bits"
    for format in (product.left, product.right):
        if format in IN_BLOCKS:
            return f"'{format}' has its scales in blocks along one axis, and a convolution sums over several"
    return ""


def low_bit_convolution(graph: fx.Graph, node: Node, *settings: Any, scales: Sequence[Node] = ()) -> Node:
    """The product of a node, at the point of insertion. settings: formats, key, ordinal and purpose."""
    *moves, _, _, groups = geometry(node)
    like: Tensor = result(node).meta["val"]
    layout = (list(like.shape), list(like.stride()))
    made = called(graph, operator(node), *operands(node), *settings, *moves, groups, *layout, *scales)
    bias = node.args[2] if node.target is aten.convolution.default else None
    return made if bias is None else inlined(graph, with_bias, made, bias)


def with_bias(y: Tensor, bias: Tensor) -> Tensor:
    """y[n, o, p] + b[o]."""
    return y + bias.view(-1, *[1] * (y.dim() - 2))


def operator(node: Node) -> Any:
    if node.target is aten.convolution.default:
        return ops.low_bit_convolution.default
    mask: Any = node.args[-1]
    return ops.low_bit_convolution_input.default if mask[0] else ops.low_bit_convolution_weight.default


def weight(node: Node) -> Node:
    """The kernel, whether it is an operand or the result is its gradient."""
    kernel = node.args[1] if node.target is aten.convolution.default else node.args[2]
    assert isinstance(kernel, Node)
    return kernel


def result(node: Node) -> Node:
    """What holds the one tensor that a node computes: itself, or what takes it from a tuple."""
    if node.target is aten.convolution.default:
        return node
    (taken,) = node.users
    return taken


def geometry(node: Node) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
    """(stride, padding, dilation, transposed, output padding, groups), a number for each axis."""
    start = 3 if node.target is aten.convolution.default else 4
    given: Any = node.args[start : start + 6]
    axes = operands(node)[0].meta["val"].dim() - 2
    stride, padding, dilation = (list(each) * (axes if len(each) == 1 else 1) for each in given[:3])
    return stride, padding, dilation, *given[3:]
