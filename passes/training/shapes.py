"""What backward reads only for its shape need not cross.

    max_pool_backward(dy, x, indices)  -->  max_pool_backward(dy, zeros of x's shape, indices)

The zeros are one number, seen as many times as there are elements.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.passes.training.graphs import inlined

aten = torch.ops.aten

# Operators of backward, and which of their operands tells nothing but a shape.
SHAPE_ONLY: Mapping[Any, int] = {
    aten.max_pool2d_with_indices_backward.default: 1,
    aten.max_pool3d_with_indices_backward.default: 1,
    aten.avg_pool2d_backward.default: 1,
    aten.avg_pool3d_backward.default: 1,
    aten._adaptive_avg_pool2d_backward.default: 1,
    aten._adaptive_avg_pool3d_backward.default: 1,
}


def forget_values(backward: fx.Graph) -> None:
    """Give operators that read a shape zeros of that shape; the graph is changed."""
    for node in list(backward.nodes):
        place = SHAPE_ONLY.get(node.target)
        if place is None or not isinstance(node.args[place], Node):
            continue
        with backward.inserting_before(node):
            zeros = inlined(backward, blank, node.args[place])
        node.update_arg(place, zeros)


def blank(like: Tensor) -> Tensor:
    """Zeros that take no room, and do not depend on the tensor whose shape they have."""
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape)
