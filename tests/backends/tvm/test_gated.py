"""Gates of our own: within their stated bound of float64."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.backends.tvm.build import compiled, handed, host, placed
from qcompiler.backends.tvm.kernels.gated import Columns, Gated, gated
from qcompiler.backends.tvm.plane import SPARE
from tests.backends.tvm.test_cached_attention import UNIT, lines
from tests.backends.tvm.test_conv import ISA, pytestmark

__all__ = ["pytestmark"]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 5), width=st.integers(1, 150), gap=st.integers(0, 5),
    largest=st.sampled_from([1.0, 30.0, 1000.0]), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_within_the_bound(rows: int, width: int, gap: int, largest: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = lines(rows, 2 * width + gap, 2 * width + gap + 3)
    layer = Gated(
        a=Columns(plane=x), b=Columns(plane=x, first=width + gap), y=lines(rows, width, width + gap)
    )
    given_ = placed(torch.randn(x.size, generator=generator).numpy() * np.float32(largest))
    y = placed(np.zeros(layer.y.size, np.float32))
    memory = handed(given_)
    compiled([gated(layer, ISA, "kernel")], host())["kernel"](memory, memory, handed(y))
    pixels = torch.from_numpy(given_[:-SPARE]).reshape(rows, -1).double()
    a, b = pixels[:, :width], pixels[:, width + gap : 2 * width + gap]
    wanted = F.silu(a) * b
    apart = (torch.from_numpy(y[:-SPARE]).reshape(rows, -1)[:, :width] - wanted).abs()
    assert bool((apart <= UNIT * wanted.abs() * (a.abs() + 8) + 2.0**-125 * (a * b).abs()).all())
