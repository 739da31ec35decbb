"""What ops are, algebraically. Legality of fusing and of moving Q/DQ follows from these, never from names.

For a quantizer F (monotone, idempotent, F(0) = 0) the traits give, with one (s, z) on both sides:

    MOVES_DATA   P(F(x)) = F(P(x))                       exact
    SELECTS      max(F(a), F(b)) = F(max(a, b))          exact, because F is monotone
    CLAMPS       clip(F(x)) = F(x)                       exact where the code range lies inside the bounds
    HOMOGENEOUS  f(a x) = a f(x), a > 0                  scales may pass through
"""

from enum import Flag, auto
from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten
qc = torch.ops.qcompiler


class Trait(Flag):
    """A property of an op as a function of its operands together.

    Of a product it is said of each factor alone; of a contraction, of its input where the bias is absent.
    """

    NONE = 0
    ELEMENTWISE = auto()
    MONOTONE = auto()  # x <= y implies f(x) <= f(y)
    HOMOGENEOUS = auto()  # f(a x) = a f(x) for a > 0
    LINEAR = auto()  # f(x + y) = f(x) + f(y)
    MOVES_DATA = auto()  # every output element is an input element, chosen by position
    SELECTS = auto()  # every output element is an input element or 0, chosen by order
    CLAMPS = auto()  # min(max(x, lo), hi)
    COMMUTES = auto()  # f(x, y) = f(y, x)
    MIXES_CHANNELS = auto()  # a contraction with a weight: conv, linear, matmul
    REDUCES = auto()  # averages or sums over an axis
    JOINS = auto()  # concatenates several tensors
    ROWWISE = auto()  # f(x)[i] = f(x[i]) for the leading axes of its first operand, where ranks are equal
    IDENTITY = auto()  # f(x) = x in inference


T = Trait
POINTWISE = T.ELEMENTWISE | T.MONOTONE
MOVE = T.MOVES_DATA | T.MONOTONE | T.HOMOGENEOUS | T.LINEAR

TRAITS: dict[Any, Trait] = {
    # contractions
    aten.conv1d.default: T.MIXES_CHANNELS | T.LINEAR | T.HOMOGENEOUS,
    aten.conv2d.default: T.MIXES_CHANNELS | T.LINEAR | T.HOMOGENEOUS,
    aten.conv3d.default: T.MIXES_CHANNELS | T.LINEAR | T.HOMOGENEOUS,
    aten.linear.default: T.MIXES_CHANNELS | T.LINEAR | T.HOMOGENEOUS | T.ROWWISE,
    aten.matmul.default: T.MIXES_CHANNELS | T.LINEAR | T.HOMOGENEOUS,
    aten.bmm.default: T.MIXES_CHANNELS | T.LINEAR | T.HOMOGENEOUS,
    # clamps
    aten.relu.default: POINTWISE | T.HOMOGENEOUS | T.CLAMPS,
    aten.hardtanh.default: POINTWISE | T.CLAMPS,
    aten.clamp.default: POINTWISE | T.CLAMPS,
    # other pointwise functions
    aten.sigmoid.default: POINTWISE,
    aten.tanh.default: POINTWISE,
    aten.hardsigmoid.default: POINTWISE,
    aten.leaky_relu.default: T.ELEMENTWISE | T.HOMOGENEOUS,
    aten.gelu.default: T.ELEMENTWISE,
    aten.silu.default: T.ELEMENTWISE,
    aten.hardswish.default: T.ELEMENTWISE,
    aten.neg.default: T.ELEMENTWISE | T.LINEAR | T.HOMOGENEOUS,
    # pairs
    aten.add.Tensor: T.ELEMENTWISE | T.MONOTONE | T.HOMOGENEOUS | T.COMMUTES,
    aten.mul.Tensor: T.ELEMENTWISE | T.LINEAR | T.HOMOGENEOUS | T.COMMUTES,
    aten.maximum.default: T.ELEMENTWISE | T.MONOTONE | T.SELECTS | T.COMMUTES,
    aten.minimum.default: T.ELEMENTWISE | T.MONOTONE | T.SELECTS | T.COMMUTES,
    # reductions and pooling
    qc.global_avg_pool.default: T.REDUCES | T.MONOTONE | T.LINEAR | T.HOMOGENEOUS,
    aten.avg_pool2d.default: T.REDUCES | T.MONOTONE | T.LINEAR | T.HOMOGENEOUS,
    aten.avg_pool1d.default: T.REDUCES | T.MONOTONE | T.LINEAR | T.HOMOGENEOUS,
    aten.max_pool1d.default: T.SELECTS | T.MONOTONE | T.HOMOGENEOUS,
    aten.max_pool2d.default: T.SELECTS | T.MONOTONE | T.HOMOGENEOUS,
    aten.amax.default: T.SELECTS | T.MONOTONE | T.HOMOGENEOUS,
    # norms over the last axes
    aten.layer_norm.default: T.ROWWISE,
    aten.rms_norm.default: T.ROWWISE,
    # joining
    aten.cat.default: T.JOINS | T.MONOTONE | T.HOMOGENEOUS | T.LINEAR,
    # data movement
    **{
        op: MOVE
        for op in (
            aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default,
            aten.transpose.int, aten.t.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
            aten.slice.Tensor, aten.select.int, aten.expand.default, aten.flip.default,
            aten.pixel_shuffle.default,
        )
    },
    # identities
    aten.clone.default: MOVE | T.ELEMENTWISE | T.IDENTITY,
    aten.alias.default: MOVE | T.ELEMENTWISE | T.IDENTITY,
    aten.detach.default: MOVE | T.ELEMENTWISE | T.IDENTITY,
    aten.contiguous.default: MOVE | T.ELEMENTWISE | T.IDENTITY,
    aten.dropout.default: MOVE | T.ELEMENTWISE | T.IDENTITY,
}  # fmt: skip


def traits(node: Node | Any) -> Trait:
    """The traits of a node's op; Trait.NONE for an op that the table does not know."""
    target = node.target if isinstance(node, Node) else node
    return TRAITS.get(target, Trait.NONE)


def has(node: Node | Any, wanted: Trait) -> bool:
    """Whether an op has all the wanted traits."""
    return traits(node) & wanted == wanted
