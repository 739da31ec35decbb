"""Convolutions of operands in few bits: `torch.ops.qcompiler.low_bit_convolution`, `..._input`, `..._weight`.

    forward      y[n, o, p]  = sum_(c, k) x[n, c, i] w[o, c, k]      a scale for each n, for each o
    grad-input   dx[n, c, i] = sum_(o, k) dy[n, o, p] w[o, c, k]     a scale for each n, for each c
    grad-weight  dw[o, c, k] = sum_(n, p) dy[n, o, p] x[n, c, i]     a scale for each o, for each c

where i = stride p + dilation k - padding, in 1 to 3 dimensions. Scales are constant along what is summed
over; each group of channels is a convolution of its own, with scales of its own. Sums of int8 codes are
exact, and are rounded once, to float32. With a key the left operand, which is then a gradient, is rounded
stochastically by the draws of (tensor, purpose).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompiler.ir.columns import Windows, correlations, weight_sums
from qcompiler.numerics.operands import OPERANDS, WHOLE, Operand
from qcompiler.numerics.operands import operand as whole
from qcompiler.numerics.philox import uniform

SCHEMA = """(
    Tensor left, Tensor right, str left_format, str right_format, Tensor? key, int tensor, int purpose,
    int[] stride, int[] padding, int[] dilation, int groups, int[] shape, int[] layout,
    Tensor? left_scale=None, Tensor? right_scale=None
) -> Tensor"""
"""`shape` and strides (`layout`) are those of the result, whose type is that of the left operand. Scales that
are given are those of whole operands, known before these were."""

SHAPE = 10  # the place of the result's shape behind the left operand
PIECE = 2**18  # elements that become codes at a time

Axes = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a kernel moves over x, one number for each axis of space."""

    stride: Axes
    padding: Axes
    dilation: Axes

    def forward(self, kernel: Axes, positions: Axes) -> Windows:
        """What the positions of y see of x."""
        return Windows(
            kernel=kernel, positions=positions, stride=self.stride, dilation=self.dilation,
            before=self.padding, step=(1,) * len(kernel),
        )  # fmt: skip

    def backward(self, kernel: Axes, positions: Axes) -> Windows:
        """What the positions of dx see of dy, spread by the stride, through a kernel that is turned round."""
        axes = zip(kernel, self.dilation, self.padding, strict=True)
        return Windows(
            kernel=kernel, positions=positions, stride=(1,) * len(kernel), dilation=self.dilation,
            before=tuple(dilation * (size - 1) - padding for size, dilation, padding in axes),
            step=self.stride,
        )  # fmt: skip


Fill = Callable[[Tensor, Operand, Operand, Geometry], None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of the three products: x and dy come as [N, G, channels, ...], and w as [G, O, C, ...].

    right_groups: the axis of the right operand that groups divide. sums: of each operand, with its groups,
    the axis that is summed over beside those of space. fill: writes the result, with its groups.
    """

    right_groups: int
    result_groups: int
    sums: tuple[int, int]
    fill: Fill


def forward(y: Tensor, x: Operand, w: Operand, geometry: Geometry) -> None:
    windows = geometry.forward(w.values.shape[3:], y.shape[3:])
    convolve(y, x.values, w.values, x.scale * w.scale.movedim(2, 0), windows)


def grad_input(dx: Tensor, dy: Operand, w: Operand, geometry: Geometry) -> None:
    turned = w.values.transpose(1, 2).flip(tuple(range(3, w.values.dim())))
    windows = geometry.backward(turned.shape[3:], dx.shape[3:])
    convolve(dx, dy.values, turned, dy.scale * w.scale.movedim(1, 0), windows)


def grad_weight(dw: Tensor, dy: Operand, x: Operand, geometry: Geometry) -> None:
    windows = geometry.forward(dw.shape[3:], dy.values.shape[3:])
    scale = dy.scale.movedim(0, 2) * x.scale.movedim(0, 1)
    for group, part in enumerate(dw):
        sums = weight_sums(dy.values[:, group], x.values[:, group], windows)
        part.copy_(sums.float().mul_(scale[group]))


def convolve(result: Tensor, values: Tensor, weight: Tensor, scale: Tensor, windows: Windows) -> None:
    last = result.stride(2) == 1
    for group, part in enumerate(weight):
        for samples, lines, sums in correlations(values[:, group], part, windows, channels_last=last):
            result[samples, group, :, lines] = sums.float().mul_(scale[samples, group])


KINDS: Mapping[str, Kind] = {
    "low_bit_convolution": Kind(right_groups=0, result_groups=1, sums=(2, 2), fill=forward),
    "low_bit_convolution_input": Kind(right_groups=0, result_groups=1, sums=(2, 1), fill=grad_input),
    "low_bit_convolution_weight": Kind(right_groups=1, result_groups=0, sums=(0, 0), fill=grad_weight),
}


def define(name: str, kind: Kind) -> None:
    """Register the operator of a kind."""

    def run(
        left: Tensor, right: Tensor, left_format: str, right_format: str, key: Tensor | None,
        tensor: int, purpose: int, stride: Axes, padding: Axes, dilation: Axes, groups: int,
        shape: Axes, layout: Axes, left_scale: Tensor | None = None, right_scale: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        noise = None if key is None else uniform(left.numel(), key, tensor=tensor, purpose=purpose)
        a = operand(left_format, by_group(left, 1, groups), kind.sums[0], noise, left_scale)
        b = operand(right_format, by_group(right, kind.right_groups, groups), kind.sums[1], None, right_scale)
        result = left.new_empty_strided(shape, layout)
        geometry = Geometry(stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation))
        kind.fill(by_group(result, kind.result_groups, groups), *alike(a, b), geometry)
        return result

    def fake(left: Tensor, *rest: Any) -> Tensor:
        shape, layout = rest[SHAPE : SHAPE + 2]
        return left.new_empty_strided(shape, layout)

    torch.library.custom_op(f"qcompiler::{name}", run, mutates_args=(), schema=SCHEMA).register_fake(fake)


def operand(format: str, x: Tensor, axis: int, noise: Tensor | None, scale: Tensor | None = None) -> Operand:
    """An operand with its groups, and with a scale that has an axis for each of the values'.

    Where scales differ along an axis, pieces of it become codes one after the other, and stay in the cache.
    """
    axes = (axis, *range(3, x.dim()))
    kept = [1 if each in axes else length for each, length in enumerate(x.shape)]
    across = kept.index(max(kept))
    size = max(1, PIECE * kept[across] // max(1, x.numel()))
    if format in WHOLE or x.stride(across) == 1 or size >= kept[across]:
        made = whole(format, x, axes, noise, scale)
        return Operand(values=made.values, scale=made.scale.expand(kept))
    draws = None if noise is None else noise.view(x.shape)
    parts = []
    for start in range(0, kept[across], size):
        place = (across, start, min(size, kept[across] - start))
        drawn = None if draws is None else draws.narrow(*place)
        parts.append(OPERANDS[format](x.narrow(*place), axes, drawn))
    values = torch.empty_like(x, dtype=parts[0].values.dtype)  # where x has them, other than torch.cat
    torch.cat([part.values for part in parts], across, out=values)
    return Operand(values=values, scale=torch.cat([part.scale for part in parts], across))


def by_group(x: Tensor, axis: int, groups: int) -> Tensor:
    """A view with two axes for one: groups, and what each of them has."""
    return x.view(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def alike(a: Operand, b: Operand) -> tuple[Operand, Operand]:
    """Both with values of one type: codes, unless one has floats."""
    if a.values.dtype == b.values.dtype:
        return a, b
    return as_floats(a), as_floats(b)


def as_floats(operand: Operand) -> Operand:
    return Operand(values=operand.values.float(), scale=operand.scale)


for name, kind in KINDS.items():
    define(name, kind)
