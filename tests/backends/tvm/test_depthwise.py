"""Depthwise convolutions of our own: equal to the reference to the last bit, whatever the shape and patch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompiler.backends.tvm.build import compiled, handed, host, placed
from qcompiler.backends.tvm.isa import AVX512_VNNI
from qcompiler.backends.tvm.kernels.conv import Convolution
from qcompiler.backends.tvm.kernels.depthwise import Depthwise, Patch, arranged, depthwise, pack
from qcompiler.backends.tvm.plane import Plane
from qcompiler.target.machine import this_cpu
from tests.backends.tvm.test_conv import (
    INPUT_ZERO,
    Numbers,
    drawn,
    filled,
    inside,
    multipliers,
    reference,
    small,
    up,
)

ISA = AVX512_VNNI
pytestmark = pytest.mark.skipif(
    not set(ISA.features) <= set(this_cpu().features), reason=f"this CPU has no {', '.join(ISA.features)}"
)


def as_convolution(layer: Depthwise) -> Convolution:
    """The same layer as the reference sees it."""
    return Convolution(
        x=layer.x, y=layer.y, kernel=layer.kernel, stride=layer.stride, padding=layer.padding,
        dilation=layer.dilation, groups=layer.x.channels, zero_point=layer.zero_point,
    )  # fmt: skip


def run(layer: Depthwise, patch: Patch, numbers: Numbers) -> NDArray[np.uint8]:
    channels = layer.x.channels
    bias = numbers.bias - INPUT_ZERO * numbers.weight.astype(np.int32).reshape(channels, -1).sum(1)
    constants = (
        pack(layer, numbers.weight, ISA), arranged(layer, bias.astype(np.int32), ISA),
        arranged(layer, multipliers(numbers.scales), ISA),
    )  # fmt: skip
    y = placed(np.full(layer.y.size, 99, np.uint8))
    module = compiled([depthwise(layer, patch, ISA, "layer")], host())
    module["layer"](*map(handed, [filled(layer.x, numbers.x, INPUT_ZERO), *map(placed, constants), y]))
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
        images=images, height=size[0], width=size[1], channels=channels, pitch=up(channels), border=border
    )
    y = Plane(images=images, height=height, width=width, channels=channels, pitch=up(channels) + 16, border=1)
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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layer=layers(THREE, ONE), patch=PATCHES, seed=st.integers(0, 1000))
def test_three_by_three_equals_the_reference(layer: Depthwise, patch: Patch, seed: int) -> None:
    numbers = drawn(as_convolution(layer), seed)
    assert np.array_equal(run(layer, patch, numbers), reference(as_convolution(layer), numbers))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layer=layers(ANY, small), patch=PATCHES, seed=st.integers(0, 1000))
def test_any_kernel_equals_the_reference(layer: Depthwise, patch: Patch, seed: int) -> None:
    numbers = drawn(as_convolution(layer), seed)
    assert np.array_equal(run(layer, patch, numbers), reference(as_convolution(layer), numbers))


@pytest.mark.parametrize("columns", range(1, 7))
def test_neighbours_in_pairs_and_the_one_left_over(columns: int) -> None:
    x, y = planes(
        (3, 9), 64, 1, 1, kernel=(3, 3), dilation=(1, 1), padding=(1, 1), stride=(1, 1)
    )  # fmt: skip
    layer = Depthwise(x=x, y=y, kernel=(3, 3), padding=(1, 1))
    numbers = drawn(as_convolution(layer), 0)
    found = run(layer, Patch(rows=2, columns=columns), numbers)
    assert np.array_equal(found, reference(as_convolution(layer), numbers))
