"""Every row of the CPU target's table runs as the kernel it names, compiled as a user's model is."""

import pytest
import torch
from torch import Tensor, nn

from qcompiler.api import explain
from qcompiler.backends.base import Execution
from qcompiler.backends.ort import Ort
from qcompiler.passes.decide import Decision
from qcompiler.proof import quantized
from qcompiler.target import KernelRow, find_target

CPU = find_target("cpu")
ON_CHANNELS_LAST = {"MaxPool": "NhwcMaxPool"}


class EveryRow(nn.Module):
    """One branch per row; the ops that only carry codes stand behind convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(4, 4, 3)
        self.plane = nn.Conv2d(4, 4, 3, padding=1)
        self.other = nn.Conv2d(4, 4, 1)
        self.space = nn.Conv3d(4, 4, 3)
        self.flat, self.clamped = nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, line: Tensor, plane: Tensor, space: Tensor, flat: Tensor) -> tuple[Tensor, ...]:
        a, b = self.plane(plane), self.other(plane)
        return (
            self.line(line),
            self.space(space),
            self.flat(flat),
            self.clamped(flat).relu(),
            a + b,
            a * b,
            nn.functional.adaptive_avg_pool2d(a, 1),
            nn.functional.avg_pool2d(b, 2),
            nn.functional.max_pool2d(a, 2),
            torch.cat([a, b], 1),
            torch.sigmoid(a),
            nn.functional.leaky_relu(b, 0.2),
        )


SHAPES = ((2, 4, 9), (2, 4, 8, 8), (2, 4, 4, 4, 4), (2, 16))


@pytest.fixture(scope="module")
def every_row() -> tuple[Decision, Execution]:
    decision = explain(EveryRow().eval(), tuple(torch.randn(shape) for shape in SHAPES))
    return decision, Ort().lower(quantized(decision), threads=1).execution(decision.plan)


@pytest.mark.parametrize("row", CPU.rows, ids=lambda row: str(row.op))
def test_row_runs_as_the_kernel_it_names(row: KernelRow, every_row: tuple[Decision, Execution]) -> None:
    decision, ran = every_row
    nodes = decision.graph.by_name
    kernels = {layer.kernel for layer in ran.layers if nodes[layer.node].target == row.op}
    named = {row.kernel, row.to_float} - {""}
    assert kernels == {ON_CHANNELS_LAST.get(kernel, kernel) for kernel in named}


class EveryMove(nn.Module):
    """conv -> movement -> conv or linear, one branch per kind of movement."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(4, 4, 1)
        self.four, self.eight, self.two, self.one = (nn.Conv2d(channels, 2, 1) for channels in (4, 8, 2, 1))
        self.line, self.row = nn.Conv1d(4, 2, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.before(x)
        pooled = nn.functional.adaptive_avg_pool2d(y, 1)
        return (
            self.four(y.view(x.shape[0], 4, 4, 16)),
            self.four(y.reshape(-1, 4, 16, 4)),
            self.eight(y.permute(0, 3, 2, 1)),
            self.four(y.transpose(2, 3)),
            self.row(pooled.squeeze(3).squeeze(2)),
            self.four(y.unsqueeze(4).flatten(3)),
            self.two(y[:, 1:3]),
            self.line(y.select(2, 0)),
            self.four(pooled.expand(-1, -1, 8, 8)),
            self.one(nn.functional.pixel_shuffle(y, 2)),
        )


def test_movement_stays_on_codes() -> None:
    """One Q at the input and one DQ for every output: nothing between is decoded."""
    decision = explain(EveryMove().eval(), torch.randn(2, 4, 8, 8))
    ran = Ort().lower(quantized(decision), threads=1).execution(decision.plan)
    assert (ran.kernels["QuantizeLinear"], ran.kernels["DequantizeLinear"]) == (1, 9)
    assert not ran.stray
    assert {layer.precision for layer in ran.layers} == {"int8"}
