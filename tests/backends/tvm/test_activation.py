"""Activations and rotary embeddings of rows: floats within the stated bound or equal, their codes exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from qcompiler.backends.reference.kernels import multiply_add
from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.activation import Activation, activation
from qcompiler.backends.tvm.kernels.rotary import Rotary, rotary
from qcompiler.backends.tvm.plane import Plane
from qcompiler.numerics import quantize
from tests.backends.tvm.sets import built, every_isa, pytestmark, some_isa
from tests.backends.tvm.test_edge import ZEROS, params
from tests.backends.tvm.test_norm import WIDTHS, are_extremes, kept, laid, plane, room, taken
from tests.backends.tvm.test_rounding import BLOCKS, between, is_rounded

__all__ = ["pytestmark"]
SCALE = 0.02


def run(
    isa: Isa, function: Any, arguments: list[NDArray[Any]], y: Plane, q: Plane, zero: int = 0, block: int = 0,
    ranged: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """Floats and codes; nothing beside the rows is written, and they are rounded in blocks where wanted, and
    their extremes found."""
    rounded, seen = between(y, block), room(y.width, isa) if ranged else []
    floats, codes = placed(np.full(y.size, 99, np.float32)), placed(np.full(q.size, 99, np.uint8))
    step = placed(np.array([SCALE], np.float32)), placed(np.array([zero], np.int32))
    built(function, isa)(*map(handed, [*arguments, *step, floats, codes, *rounded, *seen]))
    assert kept(y, floats, 99) and kept(q, codes, 99)
    assert not block or is_rounded(torch.from_numpy(taken(y, floats)), block, rounded)
    assert not ranged or are_extremes(taken(y, floats), seen)
    return taken(y, floats).copy(), taken(q, codes).copy()


def coded(floats: NDArray[Any], zero: int) -> NDArray[Any]:
    return np.asarray(quantize(torch.from_numpy(floats), params(SCALE, zero)).numpy())


def exact(function: str, x: Tensor) -> Tensor:
    if function == "silu":
        return F.silu(x.double())
    return F.gelu(x.double(), approximate="tanh" if function == "gelu_tanh" else "none")


def allowed(function: str, x: Tensor) -> Tensor:
    """What the docstring allows an activation to be off."""
    return (2.6e-5 if function == "gelu" else 0.0) + 2**-21 * x.double().abs()


FUNCTION = st.sampled_from(["gelu", "gelu_tanh", "silu"])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa, function=FUNCTION, rows=st.integers(1, 4), channels=WIDTHS, gap=st.sampled_from([0, 3]),
    spread=st.sampled_from([0.1, 2.0, 30.0]), zero=ZEROS, block=BLOCKS, ranged=st.booleans(),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_gate(
    isa: Isa, function: str, rows: int, channels: int, gap: int, spread: float, zero: int, block: int,
    ranged: bool, seed: int,
) -> None:  # fmt: skip
    """Gate and other half on one plane, as one linear leaves them."""
    draw = np.random.default_rng(seed)
    both, y, q = plane(rows, 2 * channels + gap, 1), plane(rows, channels, gap), plane(rows, channels, 5)
    values = (spread * draw.standard_normal((rows, both.channels))).astype(np.float32)
    layer = Activation(
        function=function, channels=channels, x=both, other=both, other_first=channels + gap, floats=y,
        codes=q, block=block, ranged=ranged,
    )  # fmt: skip
    memory = laid(both, values)
    floats, codes = run(isa, activation(layer, isa, "kernel"), [memory, memory], y, q, zero, block, ranged)
    x, other = (torch.from_numpy(values[:, i : i + channels]) for i in (0, channels + gap))
    wanted = exact(function, x) * other
    # The product is rounded once more.
    bound = allowed(function, x) * other.abs() + 2**-24 * wanted.abs() + 2.0**-149
    assert (np.abs(torch.from_numpy(floats).double() - wanted) <= bound).all()
    assert np.array_equal(codes, coded(floats, zero))


@every_isa
@pytest.mark.parametrize("function", ["gelu", "gelu_tanh", "silu"])
def test_the_bounds_of_activations(isa: Isa, function: str) -> None:
    """Everywhere, and far away: f(x) -> x or 0."""
    near = np.linspace(-12, 12, 100_003)
    far = np.concatenate([-np.geomspace(12, 1e30, 500), np.geomspace(12, 1e30, 500)])
    values = np.concatenate([near, far]).astype(np.float32)[None]
    x, y, q = (plane(1, values.size) for _ in range(3))
    layer = Activation(function=function, channels=values.size, x=x, floats=y, codes=q)
    floats, codes = run(isa, activation(layer, isa, "kernel"), [laid(x, values)], y, q)
    given_ = torch.from_numpy(values)
    wanted = exact(function, given_)
    assert (torch.from_numpy(floats).double() - wanted).abs().le(allowed(function, given_)).all()
    assert np.array_equal(codes, coded(floats, 0))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa, batch=st.integers(1, 2), positions=st.sampled_from([1, 2, 5]), heads=st.integers(1, 3),
    width=st.sampled_from([2, 6, 32, 64, 80, 128, 160]), whole=st.booleans(), gap=st.sampled_from([0, 3]),
    zero=ZEROS, seed=st.integers(0, 1000),
)  # fmt: skip
def test_rotary(
    isa: Isa, batch: int, positions: int, heads: int, width: int, whole: bool, gap: int, zero: int, seed: int
) -> None:
    """As transformers write it; the tables repeat their half, or do not."""
    draw = np.random.default_rng(seed)
    x, y, q = (plane(batch * positions, heads * width + more, 1) for more in (gap, 0, 0))
    values = draw.standard_normal((batch * positions, x.channels)).astype(np.float32)
    angles = torch.from_numpy(draw.uniform(0, 100, (positions, width // 2)).astype(np.float32))
    tables = [f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin)]
    layer = Rotary(
        x=x, first=gap, heads=heads, width=width, positions=positions, floats=y, codes=q,
        pitch=width if whole else width // 2,
    )  # fmt: skip
    given_ = [placed(table[:, : layer.pitch].numpy()) for table in tables]
    floats, codes = run(isa, rotary(layer, isa, "kernel"), [laid(x, values), *given_], y, q, zero)
    by_head = torch.from_numpy(values[:, gap:]).reshape(batch, positions, heads, width)
    low, high = by_head.chunk(2, -1)
    cosines, sines = (table[None, :, None] for table in tables)
    crossed = torch.cat([-high, low], -1)
    wanted = multiply_add(crossed, sines, by_head * cosines).reshape(batch * positions, -1).numpy()
    assert np.array_equal(floats, wanted)
    usual = (by_head * cosines + crossed * sines).reshape(batch * positions, -1).numpy()
    apart = ((by_head * cosines).abs() + (crossed * sines).abs()) * 2**-23
    assert (np.abs(floats - usual) <= apart.reshape(batch * positions, -1).numpy()).all()
    assert np.array_equal(codes, coded(floats, zero))
