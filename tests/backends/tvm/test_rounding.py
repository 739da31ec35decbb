"""Rows rounded in blocks: equal to the reference to the last bit, whoever computes the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.rounding import Rounding, rounded
from qcompiler.backends.tvm.plane import Plane
from tests.backends.tvm.sets import built, pytestmark, some_isa

__all__ = ["pytestmark"]
BLOCKS = st.sampled_from([0, 16, 32, 64, 128])  # of a kernel that may round what it writes
MARK = 99


def between(plane: Plane, block: int) -> list[NDArray[Any]]:
    """Where a kernel leaves codes, scales and sums of a plane; none for no block."""
    planes = Rounding(x=plane, block=block).planes if block else ()
    return [placed(np.full(where.size, MARK, kind)) for where, kind in planes]


def is_rounded(floats: Tensor, block: int, found: Sequence[NDArray[Any]]) -> bool:
    """Whether that is what the reference rounds rows of floats to, and nothing lies behind it."""
    rows = F.pad(floats, (0, -floats.shape[-1] % block)).reshape(len(floats), -1, block)
    scales = rows.abs().amax(-1, keepdim=True) / 127
    codes = torch.round(rows / scales.where(scales > 0, torch.ones_like(scales)))
    wanted = (codes.reshape(-1), scales.reshape(-1), codes.sum(-1).reshape(-1))
    return all(
        np.array_equal(array[: len(part)], part.numpy()) and (array[len(part) :] == MARK).all()
        for array, part in zip(found, wanted, strict=True)
    )


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa, rows=st.integers(1, 4), inputs=st.integers(1, 400), gap=st.integers(0, 20),
    block=st.sampled_from([16, 32, 64, 128, 256]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_rounded(isa: Isa, rows: int, inputs: int, gap: int, block: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator) * 10 ** torch.randn(rows, 1, generator=generator)
    x[0, : block if seed % 2 else 3] = 0  # a block without a scale
    x[-1] = torch.round(x[-1] * 2) / 2  # many ties
    layer = Rounding(
        x=Plane(images=1, height=1, width=rows, channels=inputs, pitch=inputs + gap), block=block
    )
    memory = placed(np.full(layer.x.size, np.nan, np.float32))
    memory[: rows * (inputs + gap)].reshape(rows, -1)[:, :inputs] = x.numpy()
    found = between(layer.x, block)
    built(rounded(layer, isa, "rounded"), isa)(*map(handed, [memory, *found]))
    assert is_rounded(x, block, found)
