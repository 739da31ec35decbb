"""Patch embeddings (arXiv 2010.11929, eq. 1): a convolution of disjoint patches, then one token per patch.

    transpose(flatten(conv(x, w, b, stride = kernel)))  -->  linear(patches of x, w as rows, b)

The products are the same; the linear leaves tokens where they are wanted, without a result in between.
"""

from typing import Any

import torch
from torch import Generator, Tensor

from qcompiler.ir import Draft, spec
from qcompiler.passes.rules.conditions import both, constant
from qcompiler.passes.rules.sample import choose, normal, several
from qcompiler.rewrite import Match, Rule, reals

aten = torch.ops.aten
Ints = list[int]


def convolved(x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, padding: Ints, sizes: Ints) -> Any:
    y = aten.conv2d.default(x, w, b, stride, padding, [1, 1], 1)
    return aten.transpose.int(aten.view.default(y, sizes), 1, 2)


def projected(x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, padding: Ints, sizes: Ints) -> Any:
    _, channels, height, width = x.shape
    down, across = height // stride[0], width // stride[1]
    blocks = aten.view.default(x, [-1, channels, down, stride[0], across, stride[1]])
    rows = aten.reshape.default(
        aten.permute.default(blocks, [0, 2, 4, 1, 3, 5]),
        [-1, down * across, channels * stride[0] * stride[1]],
    )
    return aten.linear.default(rows, aten.reshape.default(w, [w.shape[0], -1]), b)


def patches_tile(match: Match, draft: Draft) -> str | None:
    """Every pixel is in one patch, and the view flattens height and width."""
    given = match.bindings
    image, weight = spec(given["x"]), spec(given["w"])
    if image is None or weight is None or len(image.shape) != 4:
        return "its input is not [N, C, H, W]"
    space, kernel = image.shape[2:], list(weight.shape[2:])
    if list(given["stride"]) != kernel or any(given["padding"]) or weight.shape[1] != image.shape[1]:
        return "its patches overlap, or do not meet"
    if any(not isinstance(size, int) or size % step for size, step in zip(space, kernel, strict=True)):
        return "its patches do not fill the image"
    count = (space[0] // kernel[0]) * (space[1] // kernel[1])
    flat = len(given["sizes"]) == 3 and list(given["sizes"])[1:] in (
        [weight.shape[0], count],
        [weight.shape[0], -1],
    )
    return None if flat else "its result is not one row per patch"


def patches(g: Generator) -> tuple[Any, ...]:
    step = choose(g, [2, 3], [4, 4], [1, 2])
    x, w = normal(g, 2, 3, 4 * step[0], 2 * step[1]), normal(g, 5, 3, *step)
    return x, w, choose(g, None, normal(g, 5)), step, [0, 0], [2, 5, choose(g, 8, -1)]


PATCHES = Rule(
    name="patches-are-linear", before=convolved, after=projected, law=reals(64),
    domain=several(patches), where=both(constant("w", "b"), patches_tile),
)  # fmt: skip
