"""Float functions measured against torch: what is drawn, kept, gone on with, reused and refused."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.backends.tvm.build import compiled, host, processor_for, target_of
from qcompiler.backends.tvm.floatpath import tuning
from qcompiler.backends.tvm.floatpath.choice import FUSED, TORCH, chosen, made, unscheduled, workload
from qcompiler.backends.tvm.floatpath.draw import drawn
from qcompiler.backends.tvm.floatpath.group import Group
from qcompiler.backends.tvm.floatpath.traces import applied
from qcompiler.backends.tvm.floatpath.tuning import Bench, Job, jobs, known, tune
from qcompiler.backends.tvm.isa import Processor
from qcompiler.backends.tvm.schedules import measured_by, read_schedules, versions
from qcompiler.errors import TuningError
from qcompiler.tune.database import Core, best, open_database
from tests.backends.tvm.floatpath.example import by_torch, computed, graph_of, groups_in
from tests.backends.tvm.sets import BEST, pytestmark

__all__ = ["pytestmark"]
CORE = Core(isa=BEST.name, processor=host().name)


def function(x: Tensor, y: Tensor) -> Tensor:
    return torch.softmax(x * 0.125 + y, -1)


INPUTS = [torch.randn(6, 50), torch.randn(50)]


def one_group() -> Group:
    (group,) = groups_in(graph_of(function, INPUTS), INPUTS)
    return group


def test_draws_are_the_same_in_every_run_and_compute_the_same() -> None:
    graph = graph_of(function, INPUTS)
    (group,) = groups_in(graph, INPUTS)
    plain, target = unscheduled(group, "f"), target_of(processor_for(BEST))
    traces = drawn(plain, target, 4)
    assert len(set(traces)) == 4 and traces == drawn(plain, target, 4)
    for trace in traces:
        ((found,),) = computed([group], by_torch(graph, INPUTS), trace)
        torch.testing.assert_close(found, function(*INPUTS), rtol=2e-6, atol=1e-7)


class Weighed(nn.Module):
    """Two reductions behind a convolution, where writing by tile is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        weights = torch.softmax(self.line(x.mean(3)) * 0.5, -1)
        return x * weights.unsqueeze(-1)


def test_a_rule_that_fails_on_a_function_leaves_the_others() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 8, 48, 48)]
    graph = graph_of(Weighed(), inputs)
    (group,) = groups_in(graph, inputs)
    traces = drawn(unscheduled(group, "f"), target_of(processor_for(BEST)), 2)
    assert traces
    ((found,),) = computed([group], by_torch(graph, inputs), traces[0])
    torch.testing.assert_close(found, by_torch(graph, inputs)[group.outputs[0]], rtol=1e-5, atol=1e-6)


def test_rows_are_kept_and_used_again(tmp_path: Path) -> None:
    group = one_group()
    with open_database(tmp_path / "rows.db") as database:
        waiting = jobs([group], [], CORE, 2)
        assert [len(job.configurations(BEST)) for job in waiting] == [4]
        assert tune(waiting, database, CORE, BEST, rounds=3) == 0
        rows = database.rows()
        assert {row.configuration for row in rows} >= {TORCH, FUSED}
        assert len(rows) == 4 and {row.workload for row in rows} == {workload(group)}
        assert jobs([one_group()], rows, CORE, 2) == []  # the same group of another model
        assert [job.group for job in jobs([group], rows, CORE, 3)] == [group]  # more trials go on
        (told,) = known({group: 2}, rows)
        assert told.title == "mul, add, softmax, [6, 50]" and told.predicted == FUSED and told.calls == 2
    fastest = min(rows, key=lambda row: (row.seconds, row.configuration)).configuration
    found = read_schedules(BEST, host().name, tmp_path / "rows.db")
    assert chosen(one_group(), measured_by(found)) == fastest


def test_the_budget_of_time_ends_between_groups(tmp_path: Path) -> None:
    now = itertools.count()
    job = Job(group=one_group(), trials=0)
    with open_database(tmp_path / "rows.db") as database:
        left = tune([job, job], database, CORE, BEST, rounds=3, until=0.5, clock=lambda: float(next(now)))
        assert left == 1 and len(database.rows()) == 2


def test_nothing_is_drawn_before_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "drawn", lambda *given: pytest.fail("the time is over"))
    with open_database(tmp_path / "rows.db") as database:
        waiting = jobs([one_group()], [], CORE, 4)
        assert tune(waiting, database, CORE, BEST, until=-1.0, clock=lambda: 0.0) == 1


def test_what_has_no_code_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace may be valid where LLVM makes nothing of it: that is kept, and never chosen."""
    group = one_group()
    (valid,) = drawn(unscheduled(group, "f"), target_of(processor_for(BEST)), 1)

    def refused(functions: Sequence[Any], processor: Processor) -> Any:
        if str(functions[0].attrs["global_symbol"]) == "float_2":
            raise RuntimeError("Traceback of TVM:\nLLVM has no such type")
        return compiled(functions, processor)

    monkeypatch.setattr(tuning, "compiled", refused)
    with open_database(tmp_path / "rows.db") as database:
        assert tune(jobs([group], [], CORE, 1), database, CORE, BEST, rounds=3) == 0
        seconds = {row.configuration: row.seconds for row in database.rows()}
        assert seconds.pop(valid) == math.inf and max(seconds.values()) < 1 and len(seconds) == 2
        (held,) = [row for row in database.rows() if row.is_refused]
        assert (held.configuration, held.reason) == (valid, "it has no code: LLVM has no such type")
        assert jobs([group], database.rows(), CORE, 1) == []
        assert best(database.rows(), versions())[workload(group)].configuration != valid


def test_a_space_of_few_schedules_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "drawn", lambda *given: [])
    with open_database(tmp_path / "rows.db") as database:
        for seen in (0, 2):
            assert len(database.rows()) == seen
            assert tune(jobs([one_group()], database.rows(), CORE, 8), database, CORE, BEST, rounds=3) == 0
            monkeypatch.setattr(tuning, "Bench", lambda *given: pytest.fail("it has rows"))


def test_candidates_are_the_steps_that_run() -> None:
    bench = Bench(one_group(), (TORCH, FUSED), BEST)
    assert [len(steps) for steps in bench.steps.values()] == [3, 1]
    assert all(bench.sample(i) > 0 for i in bench.steps)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("torch", "it is no trace"),
        ("[[1], []]", "it is no trace"),
        ('[[["Tensorize",["b0"],["dot",true],[]]],[]]', "it holds 'Tensorize', which is not proven"),
        ('[[["Annotate",["b0",1],["script"],[]]],[]]', "it holds 'script', which is not proven"),
        ('[[["GetSBlock",[],["none","main"],["b0"]]],[]]', "TVM refuses it"),
    ],
)
def test_a_damaged_trace_is_refused(text: str, why: str) -> None:
    with pytest.raises(TuningError, match=f"cannot be used, because {why}"):
        applied(unscheduled(one_group(), "f"), text)


def test_a_trace_of_another_function_is_refused() -> None:
    group = one_group()
    (trace,) = drawn(unscheduled(group, "f"), target_of(processor_for(BEST)), 1)
    assert json.loads(trace)  # it is data
    inputs = [torch.randn(4, 4)]
    (other,) = groups_in(graph_of(lambda x: torch.relu(x) * 2, inputs), inputs)
    with pytest.raises(TuningError, match="TVM refuses it"):
        made(other, trace, "f")
