"""Convolutions of our own: equal to the reference to the last bit, whatever the shape and the tile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompiler.backends.reference.kernels import Output, multiply_add
from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import LINE, Convolution, Tile, convolution, merged, pack
from qcompiler.backends.tvm.plane import SPARE, Plane, pitch_of
from tests.backends.tvm.sets import built, pytestmark, some_isa

__all__ = ["pytestmark"]
INPUT_ZERO, RESIDUAL_ZERO, RESULT_ZERO = 7, 11, 128
SCALES = {"input": 0.02, "result": 0.07, "residual": 0.03}


def case(
    size: tuple[int, int], channels: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int],
    dilation: tuple[int, int], padding: tuple[int, int], groups: int, images: int, residual: bool,
    shifted: bool,
) -> Convolution:  # fmt: skip
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    out = [(s + 2 * p - e) // t + 1 for s, p, e, t in zip(size, padding, spans, stride, strict=True)]
    x = Plane(
        images=images, height=size[0], width=size[1], channels=channels[0], pitch=channels[0] + 5,
        border=max(padding),
    )  # fmt: skip
    y = Plane(
        images=images,
        height=out[0],
        width=out[1],
        channels=channels[1],
        pitch=pitch_of(channels[1]),
        border=1,
    )
    return Convolution(
        x=x, y=y, kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups,
        residual=y if residual else None, shifted=shifted,
    )  # fmt: skip


def filled(plane: Plane, codes: NDArray[np.uint8], zero: int) -> NDArray[np.uint8]:
    """Codes [N, C, H, W] on a plane whose border is the zero point and whose gaps are anything."""
    memory = placed(np.full(plane.size, 77, np.uint8))
    shape = (plane.images, plane.height + 2 * plane.border, plane.width + 2 * plane.border, plane.pitch)
    view = memory[:-SPARE].reshape(shape)
    view[..., : plane.channels] = zero
    inside(plane, memory)[:] = codes.transpose(0, 2, 3, 1)
    return memory


def inside(plane: Plane, memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels [N, H, W, C] of a plane."""
    b = plane.border
    shape = (plane.images, plane.height + 2 * b, plane.width + 2 * b, plane.pitch)
    return memory[:-SPARE].reshape(shape)[:, b : b + plane.height, b : b + plane.width, : plane.channels]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What a layer computes with; activations and residual are [N, C, H, W]."""

    x: NDArray[np.uint8]
    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    scales: NDArray[np.float32]
    residual: NDArray[np.uint8]


def drawn(layer: Convolution, seed: int) -> Numbers:
    draw, x, y = np.random.default_rng(seed), layer.x, layer.y
    inputs = x.channels // layer.groups
    reduction = inputs * layer.kernel[0] * layer.kernel[1]
    return Numbers(
        x=draw.integers(0, 256, (x.images, x.channels, x.height, x.width), np.uint8),
        weight=draw.integers(-127, 128, (y.channels, inputs, *layer.kernel)).astype(np.int8),
        bias=draw.integers(-3000, 3000, y.channels).astype(np.int32),
        scales=(draw.random(y.channels) + 0.5).astype(np.float32) / np.float32(reduction**0.5 * 40),
        residual=draw.integers(0, 256, (y.images, y.channels, y.height, y.width), np.uint8),
    )


def reference(layer: Convolution, numbers: Numbers, zero: int) -> NDArray[np.uint8]:
    centered = torch.from_numpy(numbers.x).double() - INPUT_ZERO
    sums = F.conv2d(
        centered, torch.from_numpy(numbers.weight).double(), torch.from_numpy(numbers.bias).double(),
        layer.stride, layer.padding, layer.dilation, layer.groups,
    ).float()  # fmt: skip
    steps = torch.from_numpy(multipliers(numbers.scales))[:, None, None]
    result = Output(
        scale=torch.tensor(SCALES["result"]), zero_point=torch.tensor(zero, dtype=torch.uint8),
        format="uint8",
    )  # fmt: skip
    if layer.residual is None:
        return np.asarray(result.encode(sums * steps))
    ratio, offset = torch.from_numpy(ratios())
    codes = torch.from_numpy(numbers.residual).float()
    return np.asarray(result.encode(multiply_add(codes, ratio, multiply_add(sums, steps, offset))))


def zero_of(layer: Convolution) -> int:
    return RESULT_ZERO if layer.shifted else 0


def multipliers(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.float32(SCALES["input"]) * scales / np.float32(SCALES["result"])


def ratios() -> NDArray[np.float32]:
    """Steps of the result per step of the residual, and what its zero point contributes."""
    ratio = np.float32(SCALES["residual"]) / np.float32(SCALES["result"])
    return np.array([ratio, np.float32(-RESIDUAL_ZERO) * ratio], np.float32)


def run(layer: Convolution, tile: Tile, numbers: Numbers, isa: Isa) -> NDArray[np.uint8]:
    wide, groups = merged(numbers.weight, layer.groups, isa)
    layer = replace(layer, groups=groups)
    outputs = len(wide)
    channels = -(-outputs // groups // isa.lanes) * isa.lanes * groups
    bias, multiplier = np.zeros(channels, np.int32), np.ones(channels, np.float32)
    bias[:outputs] = numbers.bias - INPUT_ZERO * wide.astype(np.int64).reshape(outputs, -1).sum(1)
    multiplier[:outputs] = multipliers(numbers.scales)
    weights = np.concatenate([pack(layer, wide, isa).reshape(-1), np.zeros(LINE, np.int8)])
    planes, constants = [filled(layer.x, numbers.x, INPUT_ZERO)], [weights, bias, multiplier]
    if layer.residual is not None:
        planes.append(filled(layer.residual, numbers.residual, 0))
        constants.append(ratios())
    if layer.shifted:
        constants.append(np.array([zero_of(layer)], np.int32))
    arguments = [*planes, *map(placed, constants)]
    y = placed(np.zeros(layer.y.size, np.uint8))
    built(convolution(layer, tile, isa, "layer"), isa)(*map(handed, [*arguments, y]))
    return inside(layer.y, y).transpose(0, 3, 1, 2)


sizes = st.tuples(st.integers(1, 11), st.integers(1, 11))
small = st.tuples(st.integers(1, 3), st.integers(1, 3))
TILES = st.builds(
    Tile,
    rows=st.integers(1, 7),
    columns=st.integers(1, 3),
    channels_first=st.booleans(),
    prefetch=st.booleans(),
)


@st.composite
def layers(draw: Any) -> Convolution:
    kernel, dilation = draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), draw(small)
    padding = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    spans = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = tuple(max(1, s) + draw(st.integers(0, 9)) for s in spans)
    groups = draw(st.sampled_from([1, 1, 2, 3, 4]))
    channels = groups * draw(st.integers(1, 12)), groups * draw(st.sampled_from([1, 5, 8, 16, 17, 32]))
    return case(
        size, channels, kernel, draw(small), dilation, padding, groups, draw(st.integers(1, 2)),
        draw(st.booleans()), draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=14, deadline=None, derandomize=True)
@given(isa=some_isa, layer=layers(), tile=TILES, seed=st.integers(0, 1000))
def test_equal_to_the_reference(isa: Isa, layer: Convolution, tile: Tile, seed: int) -> None:
    numbers = drawn(layer, seed)
    assert np.array_equal(run(layer, tile, numbers, isa), reference(layer, numbers, zero_of(layer)))
