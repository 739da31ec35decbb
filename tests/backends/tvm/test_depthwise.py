"""Depthwise convolutions of our own: equal to the reference to the last bit, whatever the shape and patch."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import Convolution
from qcompiler.backends.tvm.kernels.depthwise import Depthwise, Patch, arranged, depthwise, pack
from qcompiler.backends.tvm.plane import Plane, pitch_of
from tests.backends.tvm.sets import BEST, built, pytestmark, some_isa
from tests.backends.tvm.test_conv import (
    INPUT_ZERO,
    Numbers,
    drawn,
    filled,
    inside,
    multipliers,
    reference,
    small,
)

__all__ = ["pytestmark"]


def as_convolution(layer: Depthwise) -> Convolution:
    """The same layer as the reference sees it."""
    return Convolution(
        x=layer.x, y=layer.y, kernel=layer.kernel, stride=layer.stride, padding=layer.padding,
        dilation=layer.dilation, groups=layer.x.channels,
    )  # fmt: skip


def run(layer: Depthwise, patch: Patch, numbers: Numbers, isa: Isa) -> NDArray[np.uint8]:
    channels = layer.x.channels
    bias = numbers.bias - INPUT_ZERO * numbers.weight.astype(np.int32).reshape(channels, -1).sum(1)
    constants = (
        pack(layer, numbers.weight, isa), arranged(layer, bias.astype(np.int32), isa),
        arranged(layer, multipliers(numbers.scales), isa),
    )  # fmt: skip
    y = placed(np.full(layer.y.size, 99, np.uint8))
    function = built(depthwise(layer, patch, isa, "layer"), isa)
    function(*map(handed, [filled(layer.x, numbers.x, INPUT_ZERO), *map(placed, constants), y]))
    result = inside(layer.y, y).copy()
    inside(layer.y, y)[:] = 99
    assert border_kept(layer.y, y)
    return result.transpose(0, 3, 1, 2)


def border_kept(plane: Plane, memory: NDArray[np.uint8]) -> bool:
    """Whether all but the pixels is still 99; the gaps between channels may hold anything."""
    wide = Plane(
        images=plane.images, height=plane.height, width=plane.width, channels=plane.pitch, pitch=plane.pitch,
        border=plane.border,
    )  # fmt: skip
    inside(wide, memory)[:] = 99
    return bool((memory == 99).all())


def planes(
    size: tuple[int, int], channels: int, images: int, border: int, **window: tuple[int, int]
) -> tuple[Plane, Plane]:
    """Input and output of a window that slides over an image."""
    numbers = zip(
        size, window["kernel"], window["dilation"], window["padding"], window["stride"], strict=True
    )
    height, width = ((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, d, p, t in numbers)
    x = Plane(
        images=images,
        height=size[0],
        width=size[1],
        channels=channels,
        pitch=pitch_of(channels),
        border=border,
    )
    y = Plane(
        images=images, height=height, width=width, channels=channels, pitch=pitch_of(channels) + 16, border=1
    )
    return x, y


@st.composite
def layers(draw: Any, kernels: Any, dilations: Any) -> Depthwise:
    window = {"kernel": draw(kernels), "dilation": draw(dilations), "stride": draw(small)}
    window["padding"] = tuple(draw(st.integers(0, k - 1)) for k in window["kernel"])
    spans = [
        d * (k - 1) + 1 - 2 * p
        for d, k, p in zip(window["dilation"], window["kernel"], window["padding"], strict=True)
    ]
    size = tuple(max(1, s) + draw(st.integers(0, 12)) for s in spans)
    channels = draw(st.sampled_from([1, 7, 16, 24, 32, 40, 48, 64, 72, 96, 100, 144]))
    x, y = planes(size, channels, draw(st.integers(1, 2)), max(window["padding"]), **window)
    return Depthwise(x=x, y=y, **window, zero_point=draw(st.sampled_from([0, 3, 128])))


PATCHES = st.builds(Patch, rows=st.integers(1, 4), columns=st.integers(1, 4), channels_first=st.booleans())
THREE, ONE = st.just((3, 3)), st.just((1, 1))
ANY = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(isa=some_isa, layer=layers(THREE, ONE), patch=PATCHES, seed=st.integers(0, 1000))
def test_three_by_three_equals_the_reference(isa: Isa, layer: Depthwise, patch: Patch, seed: int) -> None:
    numbers = drawn(as_convolution(layer), seed)
    wanted = reference(as_convolution(layer), numbers, layer.zero_point)
    assert np.array_equal(run(layer, patch, numbers, isa), wanted)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(isa=some_isa, layer=layers(ANY, small), patch=PATCHES, seed=st.integers(0, 1000))
def test_any_kernel_equals_the_reference(isa: Isa, layer: Depthwise, patch: Patch, seed: int) -> None:
    numbers = drawn(as_convolution(layer), seed)
    wanted = reference(as_convolution(layer), numbers, layer.zero_point)
    assert np.array_equal(run(layer, patch, numbers, isa), wanted)


def test_an_odd_number_of_columns_ends_with_its_own_pixels() -> None:
    """The last column has no neighbour to share four pixels with."""
    window = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    x, y = planes((9, 7), 17, 1, 1, **window)
    layer = Depthwise(x=x, y=y, kernel=(3, 3), padding=(1, 1))
    numbers = drawn(as_convolution(layer), 0)
    for columns in (3, 5):
        found = run(layer, Patch(rows=1, columns=columns, channels_first=True), numbers, BEST)
        assert np.array_equal(found, reference(as_convolution(layer), numbers, layer.zero_point))
