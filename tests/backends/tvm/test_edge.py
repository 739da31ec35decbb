"""Floats to codes and codes to floats: equal to the definitions of numerics to the last bit."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.edge import decode, encode
from qcompiler.backends.tvm.plane import SPARE, Plane, pitch_of
from qcompiler.numerics import IntFormat, PerTensor, QuantParams, dequantize, quantize
from tests.backends.tvm.sets import built, pytestmark, some_isa
from tests.backends.tvm.test_conv import filled, inside

__all__ = ["pytestmark"]
ODD = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-42, -0.0)


def params(scale: float, zero: int) -> QuantParams:
    return QuantParams(
        scale=torch.tensor(scale, dtype=torch.float32), zero_point=torch.tensor(zero, dtype=torch.int32),
        format=IntFormat(bits=8, signed=False), granularity=PerTensor(),
    )  # fmt: skip


@st.composite
def planes(draw: st.DrawFn) -> Plane:
    height, width = draw(
        st.one_of(
            st.just((1, 1)), st.tuples(st.integers(1, 4), st.sampled_from([1, 7, 15, 16, 33, 64, 70, 100]))
        )
    )
    channels = draw(st.sampled_from([1, 3, 4, 6, 16, 19, 35]))
    return Plane(
        images=draw(st.integers(1, 2)), height=height, width=width, channels=channels,
        pitch=draw(st.sampled_from([channels, channels + 1, pitch_of(channels)])),
        border=draw(st.integers(0, 3)),
    )  # fmt: skip


SCALES = st.sampled_from([2.0**-126, 0.0173, 0.02, 1.0, 3e38])
ZEROS = st.sampled_from([0, 3, 128, 255])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(isa=some_isa, plane=planes(), scale=SCALES, zero=ZEROS, seed=st.integers(0, 1000))
def test_encode(isa: Isa, plane: Plane, scale: float, zero: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    shape = (plane.images, plane.channels, plane.height, plane.width)
    x = (scale * draw.uniform(-300, 300, shape)).clip(-3e38, 3e38)
    x = np.where(draw.random(shape) < 0.3, (scale * draw.integers(-600, 600, shape) / 2).clip(-3e38, 3e38), x)
    x = np.where(draw.random(shape) < 0.1, draw.choice(ODD, shape), x).astype(np.float32)
    codes = quantize(torch.from_numpy(x), params(scale, zero)).numpy()
    found = placed(np.full(plane.size, 99, np.uint8))
    built(encode(plane, zero, isa, "edge"), isa)(
        *map(handed, [placed(x), placed(np.array([scale], np.float32)), found])
    )
    wanted = filled(plane, codes, zero)
    view = [array[:-SPARE].reshape(-1, plane.pitch)[:, : plane.channels] for array in (found, wanted)]
    assert np.array_equal(view[0], view[1])
    assert (found[-SPARE:] == 99).all()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(isa=some_isa, plane=planes(), scale=SCALES, zero=ZEROS, seed=st.integers(0, 1000))
def test_decode(isa: Isa, plane: Plane, scale: float, zero: int, seed: int) -> None:
    shape = (plane.images, plane.channels, plane.height, plane.width)
    codes = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    memory = filled(plane, codes, zero)
    assert np.array_equal(inside(plane, memory).transpose(0, 3, 1, 2), codes)
    found = placed(np.zeros(shape, np.float32))
    built(decode(plane, zero, isa, "edge"), isa)(
        *map(handed, [memory, placed(np.array([scale], np.float32)), found])
    )
    wanted = dequantize(torch.from_numpy(codes), params(scale, zero)).numpy()
    assert np.array_equal(found.reshape(shape), wanted)
