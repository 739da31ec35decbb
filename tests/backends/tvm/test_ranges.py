"""Ranges taken at run time: the kernels, and linears behind them, equal the reference to the last bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.tvm import Tvm
from qcompiler.backends.tvm.build import handed, placed
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.extremes import extremes_of
from qcompiler.backends.tvm.kernels.ranges import encode_at_once, extremes
from qcompiler.backends.tvm.plane import NUMBER
from qcompiler.proof import quantized
from tests.backends.tvm.networks import TARGET, equal_to_the_reference
from tests.backends.tvm.sets import built, pytestmark, seeds, some_isa
from tests.backends.tvm.test_norm import WIDTHS, kept, laid, plane, taken

__all__ = ["pytestmark"]
qc = torch.ops.qcompiler

# Among them numbers so small that the scale has few bits left, or none.
SIZES = st.sampled_from([1.0, 1e-3, 3e38, 1e-43, 0.0])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    isa=some_isa,
    rows=st.integers(1, 40), channels=WIDTHS, wider=st.tuples(*[st.sampled_from([0, 3, 16])] * 2),
    size=SIZES, shift=st.sampled_from([0.0, 1.0, -1.0, 0.3]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_codes_on_a_range_of_their_own(
    isa: Isa, rows: int, channels: int, wider: tuple[int, int], size: float, shift: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    values = (size * (draw.random((rows, channels)) / 2 + shift / 2)).astype(np.float32)
    x, y = (plane(rows, channels, more) for more in wider)
    found = placed(np.full(extremes_of(rows, isa).size, np.nan, np.float32))
    codes = placed(np.full(y.size, 99, np.uint8))
    scale, zero = placed(np.zeros(NUMBER.size, np.float32)), placed(np.zeros(NUMBER.size, np.int32))
    source = laid(x, values)
    built(extremes(x, isa, "extremes"), isa)(handed(source), handed(found))
    built(encode_at_once(x, y, rows, isa, "encode"), isa)(*map(handed, (source, found, codes, scale, zero)))
    wanted = qc.dynamic_quantize(torch.from_numpy(values))
    assert np.array_equal(taken(y, codes), wanted[0].numpy()) and kept(y, codes, 99)
    assert (scale[0], zero[0]) == (wanted[1].numpy(), wanted[2].numpy())


class Linears(nn.Module):
    """Linears with and without biases and sums behind them, some of one input; no norm, so all is exact."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.inputs, width = draw.choice([1, 5, 16, 65]), draw.choice([1, 12, 33, 64])
        self.first, self.second, self.third, self.fourth = (
            nn.Linear(inputs, width, bias=draw.random() < 0.5) for inputs in (self.inputs, *[width] * 3)
        )
        self.rank, self.rows = draw.choice([1, 2, 3]), draw.choice([1, 7, 50])

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = y + self.second(F.relu(y))
        result: Tensor = z + self.third(z) + F.relu(self.fourth(z))
        return result

    def data(self, count: int, seed: int) -> Tensor:
        shape = (count, self.rows, self.inputs) if self.rank == 3 else (count, self.inputs)
        return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 1


@seeds(3, 1)
def test_linears_on_ranges_taken_at_run_time(isa: Isa, seed: int) -> None:
    torch.manual_seed(seed)
    model = Linears(seed)
    found = equal_to_the_reference(model, model.data, isa, recipe="int8-dynamic")
    linears = [layer.node for layer in found.decision.plan.layers if layer.precision == "int8"]
    assert found.verified == 4 and [found.kernels[node] for node in linears] == ["convolution"] * 4


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_find_one_range(threads: int) -> None:
    """So many rows that threads divide them."""
    torch.manual_seed(0)
    model, x = nn.Linear(256, 64).eval(), torch.randn(3000, 256)
    graph = quantized(explain(model, x[:2], recipe="int8-dynamic", target=TARGET))
    (found,) = Tvm(TARGET).lower(graph, threads=threads)([x])
    (wanted,) = Reference(TARGET).lower(graph)([x])
    assert torch.equal(found, wanted)
