"""Floats onto planes: as the reference quantizes, whatever the number of channels and the width."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qcompiler.backends.tvm.build import compiled, handed, host, placed
from qcompiler.backends.tvm.kernels.enter import Entry, entry
from qcompiler.backends.tvm.plane import Plane
from tests.backends.tvm.test_conv import ISA, inside, pytestmark

__all__ = ["pytestmark"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 18])
@pytest.mark.parametrize(
    ("height", "width", "border", "zero"), [(3, 16, 0, 0), (5, 29, 2, 114), (1, 100, 1, 3)]
)
def test_equal_to_quantize(channels: int, height: int, width: int, border: int, zero: int) -> None:
    generator = torch.Generator().manual_seed(channels * width)
    x = torch.randn(2, channels, height, width, generator=generator) * 3
    x.view(-1)[:6] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.125])
    scale, zero_point = torch.tensor(0.05), torch.tensor(zero, dtype=torch.uint8)
    wanted = torch.ops.qcompiler.quantize.default(x, scale, zero_point, "uint8")
    plane = Plane(
        images=2, height=height, width=width, channels=channels, pitch=channels if channels < 16 else 32,
        border=border,
    )  # fmt: skip
    y = placed(np.full(plane.size, zero, np.uint8))
    module = compiled([entry(Entry(y=plane, zero_point=zero), ISA, "enter")], host())
    module["enter"](handed(placed(x.numpy())), handed(placed(scale.reshape(1).numpy())), handed(y))
    assert np.array_equal(inside(plane, y).transpose(0, 3, 1, 2), wanted.numpy())
    inside(plane, y)[:] = zero
    assert (y == zero).all()  # nothing was written but pixels
