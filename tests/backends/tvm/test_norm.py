"""Norms of our own: floats within the stated bound of float64, codes of them exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional as F

from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.extremes import extremes_of
from qcompiler.backends.tvm.kernels.norm import Norm, encode_rows, norm
from qcompiler.backends.tvm.plane import SPARE, Plane
from qcompiler.numerics import quantize
from tests.backends.tvm.sets import built, pytestmark, some_isa
from tests.backends.tvm.test_edge import ODD, SCALES, ZEROS, params
from tests.backends.tvm.test_rounding import BLOCKS, between, is_rounded

__all__ = ["pytestmark"]
WIDTHS = st.sampled_from([1, 2, 5, 15, 16, 17, 31, 48, 63, 64, 65, 100, 129, 192, 300, 768, 1000])


def plane(rows: int, channels: int, wider: int = 0) -> Plane:
    return Plane(images=1, height=1, width=rows, channels=channels, pitch=channels + wider)


def laid(plane: Plane, values: NDArray[Any]) -> NDArray[Any]:
    """Rows on a plane; what lies between and behind them must not be looked at."""
    memory = placed(np.full(plane.size, np.nan, np.float32))
    taken(plane, memory)[:] = values
    return memory


def taken(plane: Plane, memory: NDArray[Any]) -> NDArray[Any]:
    rows = memory[: plane.width * plane.pitch].reshape(plane.width, plane.pitch)
    return rows[:, : plane.channels]


def kept(plane: Plane, memory: NDArray[Any], mark: float) -> bool:
    """Whether nothing was written beside the rows."""
    rows = memory[: plane.width * plane.pitch].reshape(plane.width, plane.pitch)
    behind = memory[plane.width * plane.pitch :]
    return bool((rows[:, plane.channels :] == mark).all() and (behind == mark).all())


def room(turns: int, isa: Isa) -> list[NDArray[Any]]:
    """For extremes."""
    return [placed(np.full(extremes_of(turns, isa).size, np.nan, np.float32))]


def are_extremes(values: NDArray[Any], found: list[NDArray[Any]]) -> bool:
    """Whether the least and the largest number of every turn [turns, ..] stand in some lane, 0 among them."""
    turns = len(values)
    lanes = (len(found[0]) - SPARE) // turns // 2
    least, largest = found[0][: 2 * turns * lanes].reshape(turns, 2, lanes).transpose(1, 0, 2)
    flat = values.reshape(turns, -1)
    return bool(
        (least.min(1) == flat.min(1).clip(max=0)).all() and (largest.max(1) == flat.max(1).clip(min=0)).all()
    )


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa,
    rows=st.integers(1, 5), channels=WIDTHS, wider=st.tuples(*[st.sampled_from([0, 3, 16])] * 3),
    centered=st.booleans(), bias=st.booleans(), shift=st.sampled_from([0.0, 1.0, -100.0]),
    spread=st.sampled_from([1e-3, 1.0, 50.0]), wanted=st.sampled_from(["floats", "codes", "both"]),
    zero=ZEROS, block=BLOCKS, ranged=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_norm(
    isa: Isa, rows: int, channels: int, wider: tuple[int, int, int], centered: bool, bias: bool, shift: float,
    spread: float, wanted: str, zero: int, block: int, ranged: bool, seed: int,
) -> None:  # fmt: skip
    draw = np.random.default_rng(seed)
    values = (spread * (draw.standard_normal((rows, channels)) + shift)).astype(np.float32)
    gain, offset = (draw.standard_normal(channels).astype(np.float32) for _ in range(2))
    x, y, q = (plane(rows, channels, more) for more in wider)
    layer = Norm(
        x=x, floats=y if wanted != "codes" else None, codes=q if wanted != "floats" else None,
        block=block if wanted != "codes" else 0, ranged=ranged and wanted != "codes",
        centered=centered, bias=bias, epsilon=1e-5,
    )  # fmt: skip
    rounded, seen = between(y, layer.block), room(rows, isa) if layer.ranged else []
    floats, codes = placed(np.full(y.size, 99, np.float32)), placed(np.full(q.size, 99, np.uint8))
    given_ = [laid(x, values), placed(gain)] + [placed(offset)] * bias
    if layer.codes is not None:
        given_ += [placed(np.array([0.02], np.float32)), placed(np.array([zero], np.int32))]
    given_ += [floats] * (layer.floats is not None) + [codes] * (layer.codes is not None)
    built(norm(layer, isa, "norm"), isa)(*map(handed, given_ + rounded + seen))

    exact, allowed = wanted_of(values, gain, offset if bias else None, centered)
    if layer.floats is not None:
        assert (np.abs(taken(y, floats) - exact) <= allowed).all()
        assert kept(y, floats, 99)
    if layer.block:
        assert is_rounded(torch.from_numpy(taken(y, floats)), block, rounded)
    if layer.ranged:
        assert are_extremes(taken(y, floats), seen)
    if layer.codes is not None:
        assert kept(q, codes, 99)
    if wanted == "both":
        again = quantize(torch.from_numpy(taken(y, floats).copy()), params(0.02, zero))
        assert np.array_equal(taken(q, codes), again.numpy())
    if wanted == "codes":
        steps = np.clip(np.rint(exact / np.float32(0.02)) + zero, 0, 255)
        assert np.abs(taken(q, codes) - steps).max() <= 1


def wanted_of(
    values: NDArray[Any], gain: NDArray[Any], bias: NDArray[Any] | None, centered: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The norm in float64, and how far the docstring allows a result to be from it."""
    x, g = (torch.from_numpy(array).double() for array in (values, gain))
    b = None if bias is None else torch.from_numpy(bias).double()
    middle = x.mean(-1, keepdim=True) if centered else 0
    ratio = ((x - middle).square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    if centered:
        exact = F.layer_norm(x, x.shape[-1:], g, b, 1e-5)
    else:
        exact = F.rms_norm(x, x.shape[-1:], g, 1e-5) + (0 if b is None else b)
    farthest = (x.abs().amax(-1, keepdim=True) * ratio).numpy()
    return exact.numpy(), 4 * 2.0**-24 * (
        np.abs(gain) * (1 + farthest) + (0 if bias is None else np.abs(bias))
    )


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa,
    rows=st.integers(1, 5), channels=WIDTHS, wider=st.tuples(*[st.sampled_from([0, 3, 16])] * 2),
    scale=SCALES, zero=ZEROS, seed=st.integers(0, 1000),
)  # fmt: skip
def test_encode_rows(
    isa: Isa, rows: int, channels: int, wider: tuple[int, int], scale: float, zero: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    shape = (rows, channels)
    values = (scale * draw.integers(-600, 600, shape) / 2).clip(-3e38, 3e38)
    values = np.where(draw.random(shape) < 0.1, draw.choice(ODD, shape), values).astype(np.float32)
    x, q = (plane(rows, channels, more) for more in wider)
    codes = placed(np.full(q.size, 99, np.uint8))
    arguments = [
        laid(x, values),
        *map(placed, (np.array([scale], np.float32), np.array([zero], np.int32))),
        codes,
    ]
    built(encode_rows(x, q, isa, "rows"), isa)(*map(handed, arguments))
    assert np.array_equal(taken(q, codes), quantize(torch.from_numpy(values), params(scale, zero)).numpy())
    assert kept(q, codes, 99)
