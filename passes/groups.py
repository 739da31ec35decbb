"""The weights under one scale, side by side: [out, in] as [out, groups, size], [out, in, ...] as [out, n]."""

from torch import Tensor

from qcompiler.numerics import PerGroup, QuantParams


def groups_of(tensor: Tensor, params: QuantParams) -> Tensor:
    """The elements of each scale along a last axis behind the shape of the scales."""
    if isinstance(params.granularity, PerGroup):
        return tensor.reshape(len(tensor), -1, params.granularity.size)
    return tensor.flatten(1)


def summed(tensor: Tensor, params: QuantParams) -> Tensor:
    """Sum over the elements of each scale, in the shape of the scales."""
    return groups_of(tensor, params).sum(-1)
