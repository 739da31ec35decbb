"""Float ops between our kernels: which are grouped, who computes them, and what reports say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tvm.s_tir.schedule.schedule import ScheduleError

from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.tvm import Tvm, TvmExecutable
from qcompiler.backends.tvm.build import host
from qcompiler.backends.tvm.floatpath import choice
from qcompiler.backends.tvm.floatpath.choice import FUSED, TORCH, by_rule, workload
from qcompiler.backends.tvm.floatpath.step import Floats
from qcompiler.backends.tvm.program import Compute
from qcompiler.proof import quantized
from qcompiler.target import find_target
from qcompiler.tune.database import Row, open_database
from tests.backends.tvm.floatpath.example import graph_of, groups_in
from tests.backends.tvm.sets import pytestmark

__all__ = ["pytestmark"]
aten = torch.ops.aten
TARGET = find_target("cpu", "tvm")


class Odd(nn.Module):
    """Convolutions with ops in the middle that no kernel of ours computes; one is not in the table."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 2, 2)
        self.line, self.last = nn.Conv1d(8, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.up(F.relu(self.stem(x))))
        weights = torch.softmax(self.line(x.mean(3)) * 0.5, -1).cumsum(1)
        x = F.relu(self.last(x * weights.unsqueeze(-1)))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def test_a_network_with_odd_ops_in_the_middle() -> None:
    torch.manual_seed(0)
    network, x = Odd().eval(), torch.randn(2, 3, 10, 14)
    decision = explain(network, x, calibration=[torch.randn(4, 3, 10, 14)], target=TARGET)
    graph = quantized(decision)
    engine = Tvm(TARGET).lower(graph, threads=1)
    assert isinstance(engine, TvmExecutable)
    (found,), (wanted,) = engine([x]), Reference(TARGET).lower(graph)([x])
    step = (wanted.max() - wanted.min()) / 255
    assert float((found - wanted).abs().max()) <= float(step)
    steps = engine.ready([x]).program.steps
    fused = [[str(node.target) for node in step.group.nodes] for step in steps if isinstance(step, Floats)]
    assert ["aten.mul.Tensor", "aten.softmax.int"] in [
        [name for name in names if name not in ("aten.tanh.default", "aten.conv_transpose2d.input")]
        for names in fused
    ]
    left = [str(step.node.target) for step in steps if isinstance(step, Compute)]
    assert "aten.cumsum.default" in left
    ran = engine.execution(decision.plan)
    kernels = {layer.node: (layer.kernel, layer.precision) for layer in ran.layers}
    assert ("tvm float", "float") in kernels.values()
    assert kernels["conv1d"][0] == "convolution"
    assert ran.kernels["tvm float"] >= 2
    other = torch.randn(3, 3, 10, 14)  # another batch is another program
    assert float((engine([other])[0] - Reference(TARGET).lower(graph)([other])[0]).abs().max()) <= step


def test_a_group_ends_where_something_else_reads_it() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.relu(x + y)
        b = torch.cumsum(a, 1)  # not in the table: it reads a, and what follows reads both
        return a * b + 1, (a * 2).transpose(0, 1)

    inputs = [torch.randn(4, 6), torch.randn(4, 6)]
    first, *others = groups_in(graph_of(function, inputs), inputs)
    add, relu = first.nodes
    assert [node.target for node in first.nodes] == [aten.add.Tensor, aten.relu.default]
    assert first.outputs == (relu,) and add not in first.outputs
    ops = sorted(str(node.target) for group in others for node in group.nodes)
    assert ops == ["aten.add.Tensor", "aten.mul.Tensor", "aten.mul.Tensor"]  # the transpose is a view
    assert first.text == (
        "a: f32[4, 6]; b: f32[4, 6]; c = aten.add.Tensor(a, b): f32[4, 6]; "
        "d = aten.relu.default(c): f32[4, 6]; return d"
    )


@pytest.mark.parametrize(
    ("function", "who"),
    [
        (torch.relu, TORCH),  # one pass over memory for both
        (lambda x: torch.relu(x) * 2, FUSED),
        (lambda x: torch.softmax(x, -1), TORCH),
        (lambda x: torch.softmax(x * 0.5, -1), FUSED),
        (lambda x: x[:8, :8] @ x[:8, :8].t(), FUSED),
        (lambda x: x @ x.t(), TORCH),  # 262144 products
    ],
)
def test_the_rule_takes_tvm_where_it_saves_a_pass_or_a_start(function: object, who: str) -> None:
    x = torch.randn(64, 64)
    found = groups_in(graph_of(function, [x]), [x])  # type: ignore[arg-type]
    assert [by_rule(group) for group in found] == [who]


def test_a_row_decides_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Odd().eval(), torch.randn(1, 3, 6, 6)
    graph = quantized(explain(network, x, calibration=[torch.randn(4, 3, 6, 6)], target=TARGET))
    plain = Tvm(TARGET).lower(graph, threads=1)
    assert isinstance(plain, TvmExecutable)
    groups = [step.group for step in plain.ready([x]).program.steps if isinstance(step, Floats)]
    row = Row(
        workload="", configuration=TORCH, isa=plain.isa.name, processor=host().name, seconds=1e-6,
        spread=0.0, rounds=3, compiler="tvm 0.27.0.post1", qcompiler="0.1.0",
    )  # fmt: skip

    def with_rows(configuration: str) -> TvmExecutable:
        path = tmp_path / "rows.db"
        with open_database(path) as database:
            seconds = 1e-6 if configuration == TORCH else 1e-7
            database.add(
                replace(row, workload=workload(group), configuration=configuration, seconds=seconds)
                for group in groups
            )
        found = Tvm(TARGET, database=path).lower(graph, threads=1)
        assert isinstance(found, TvmExecutable)
        return found

    by_torch = with_rows(TORCH).ready([x]).program.steps
    assert groups and not any(isinstance(step, Floats) for step in by_torch)
    with pytest.warns(UserWarning, match="cannot be used, because it is no trace"):
        damaged = with_rows("[[[")
        steps = damaged.ready([x]).program.steps
    assert sum(isinstance(step, Floats) for step in steps) == len(groups)
    torch.testing.assert_close(damaged([x])[0], plain([x])[0], rtol=0, atol=0)


def test_what_tvm_cannot_schedule_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise ScheduleError("two readers")

    torch.manual_seed(0)
    network, x = Odd().eval(), torch.randn(1, 3, 6, 6)
    graph = quantized(explain(network, x, calibration=[torch.randn(4, 3, 6, 6)], target=TARGET))
    monkeypatch.setattr(choice, "scheduled", refused)
    engine = Tvm(TARGET).lower(graph, threads=1)
    assert isinstance(engine, TvmExecutable)
    said = "TVM has no schedule for these ops together, because ScheduleError: two readers"
    with pytest.warns(UserWarning, match=rf"softmax.* stay with torch: {said}"):
        (found,) = engine([x])
    assert not any(isinstance(step, Floats) for step in engine.ready([x]).program.steps)
    assert torch.equal(found, Reference(TARGET).lower(graph)([x])[0])


def test_a_mistake_of_ours_is_not_taken_for_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "scheduled", lambda *given: dict[str, int]()["mistake"])
    x = torch.randn(4, 4)
    (group,) = groups_in(graph_of(lambda x: torch.relu(x) * 2, [x]), [x])
    with pytest.raises(KeyError, match="mistake"):
        choice.made(group, FUSED, "f")
