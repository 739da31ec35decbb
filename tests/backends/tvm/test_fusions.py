"""Fusions that do not pay are not made: what is computed apart is the same, or what the plan then says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.tvm import Tvm, TvmExecutable
from qcompiler.backends.tvm.build import processor_for
from qcompiler.backends.tvm.schedules import predicted, versions, workload, written
from qcompiler.backends.tvm.tuning import layers_of
from qcompiler.evidence import fusions
from qcompiler.passes.fuse import sums_of_codes
from qcompiler.passes.profit import Fusion
from qcompiler.proof import quantized
from qcompiler.target import Target
from qcompiler.target.costs import Behind, Way
from qcompiler.tune.database import Row, open_database
from tests.backends.tvm.networks import TARGET
from tests.backends.tvm.sets import RUNNABLE, pytestmark

__all__ = ["pytestmark"]
needs_tables = pytest.mark.skipif(
    not RUNNABLE or RUNNABLE[0].lookup is None, reason="no instruction looks 256 entries up"
)


class Mlp(nn.Module):
    """x + down(f(up(x))): a table behind the one linear, a sum of floats behind the other."""

    def __init__(self, function: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.up, self.down, self.function = nn.Linear(32, 64), nn.Linear(64, 32), function

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.function(self.up(x)))  # type: ignore[no-any-return]


class Normed(nn.Module):
    """y + last(y), y = norm(x): the norm returns floats and codes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y + self.last(y)  # type: ignore[no-any-return]


class Gated(nn.Module):
    """down(silu(gate(x)) up(x)): of the gate, only codes are read."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two convolutions, and a sum of codes behind the second."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.before(x))
        return self.head(F.relu(x + self.behind(x)))  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "table": (Mlp, (2, 9, 32), "int8"), "sum of floats": (Mlp, (2, 9, 32), "int8"),
    "sum behind few bits": (partial(Mlp, F.relu), (2, 9, 32), "w4a16"), "codes": (Normed, (2, 9, 32), "int8"),
    "codes of a gate": (Gated, (2, 9, 32), "int8"), "sum of codes": (Residual, (2, 3, 9, 14), "int8"),
}  # fmt: skip
# What is weighed, where it is not called as the case is.
KINDS = {"sum behind few bits": "sum of floats", "codes of a gate": "codes"}
EXACT = ("table", "codes", "codes of a gate", "sum behind few bits")  # the numbers do not depend on it


def losing(kind: str) -> Target:
    """The same target on a machine where the end of a kernel is slow for one kind of fusion."""
    costs = TARGET.costs
    assert costs is not None
    slow = {kind: Behind(fused=Way(rate=1.0), apart=costs.behind[kind].apart)}
    return replace(TARGET, costs=replace(costs, behind={**costs.behind, **slow}))


def lowered(case: str, target: Target, **options: Any) -> tuple[TvmExecutable, Tensor, Sequence[Fusion]]:
    """An executable whose kernels equal the reference, its result, and all that was weighed."""
    module, shape, recipe = CASES[case]
    torch.manual_seed(0)
    model, x = module().eval(), torch.randn(shape)
    decision = explain(model, x, calibration=[x], recipe=recipe, target=target)
    graph = quantized(decision)
    engine = Tvm(target, **options).lower(graph, threads=1)
    assert isinstance(engine, TvmExecutable)
    (found,), (wanted,) = engine([x]), Reference(target).lower(graph)([x])
    if module not in (Normed, Gated):  # floats, summed in another order, and by another polynomial
        assert torch.equal(found, wanted)
    checked, ran = engine.verify([x]), engine.execution(decision.plan)
    assert len(checked) >= 2 and all(node.max_lsb == 0 for node in checked)
    # Codes of the input are made by a kernel of their own, which nobody looks at.
    assert set(ran.kernels) - {node.kernel for node in checked} <= {"encode"}
    assert "reference" not in {layer.kernel for layer in ran.layers}
    return (
        engine,
        found,
        [*(fusion for _, fusion in sums_of_codes(decision.graph, target)), *engine.fusions([x])],
    )


def steps(engine: TvmExecutable) -> int:
    (ready,) = engine.programs.values()
    return len(ready.program.steps)


@needs_tables
@pytest.mark.parametrize("case", CASES)
def test_a_fusion_that_loses_on_paper_is_computed_apart(case: str) -> None:
    kind = KINDS.get(case, case)
    fused, together, usual = lowered(case, TARGET)
    apart, one_by_one, told = lowered(case, losing(kind))
    assert kind in {fusion.kind for fusion in usual} and all(fusion.taken for fusion in usual)
    assert {fusion.kind for fusion in told if not fusion.taken} == {kind}
    assert all(fusion.fused_us > fusion.apart_us for fusion in told if fusion.kind == kind)
    assert steps(apart) > steps(fused)
    if case in EXACT:
        assert torch.equal(one_by_one, together)


def test_a_target_without_costs_fuses_whatever_it_can() -> None:
    _, _, told = lowered("sum of codes", replace(TARGET, costs=None))
    assert told == []


class Heads(nn.Module):
    """Queries, keys and values of one input, and attention in torch, where a mask keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.out = nn.ModuleList(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, 16)).transpose(1, 2) for part in self.parts)
        y = F.scaled_dot_product_attention(q, k, v, torch.zeros(x.shape[1], x.shape[1]))
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("tokens", "linears"), [(1, 2), (9, 4)])
def test_siblings_of_several_rows_stay_apart_and_compute_the_same(tokens: int, linears: int) -> None:
    costs = TARGET.costs
    assert costs is not None
    unweighed = {kind: ways for kind, ways in costs.behind.items() if kind != "siblings"}
    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(1, tokens, 64)
    found = []
    for target in (TARGET, replace(TARGET, costs=replace(costs, behind=unweighed))):
        decision = explain(model, x, calibration=[x], recipe="w4a16", target=target)
        graph = quantized(decision)
        engine = Tvm(target).lower(graph, threads=1)
        assert torch.equal(engine([x])[0], Reference(target).lower(graph)([x])[0])
        found.append((decision, engine([x])[0]))
    (weighed, result), (joined, same) = found
    count = [len(decision.plan.weights) for decision in (weighed, joined)]
    assert count == [linears, 2] and torch.equal(result, same)
    told = [row for row in fusions(weighed, ()) if row["kind"] == "siblings"]
    assert [row["taken"] for row in told] == [False] * (linears > 2)
    assert all(row["fused_us"] > row["apart_us"] for row in told)
    refused = [note for note in weighed.graph.notes if (note.rule, note.outcome) == ("siblings", "refused")]
    assert ["us joined with" in note.reason for note in refused] == [True] * (linears > 2)


# ---------------------------------------------------------------- by measurement


def planted(path: Path, fused: float, alone: float, **other: Any) -> None:
    """Rows for a linear with a table behind it, and for the same linear alone, in microseconds."""
    engine, _, _ = lowered("table", TARGET)
    with open_database(path) as database:
        database.add([
            Row(**{
                "workload": workload(layer), "configuration": written(predicted(layer, engine.isa)),
                "isa": engine.isa.name, "processor": processor_for(engine.isa).name,
                "seconds": (fused if layer.table else alone) / 1e6, "spread": 0.0, "rounds": 12, **versions(),
                **other,
            })
            for layer in layers_of(engine.graph, TARGET, [torch.zeros(2, 9, 32)], engine.isa)
            if not layer.to_float
        ])  # fmt: skip


@needs_tables
def test_rows_of_both_ways_decide_against_the_paper(tmp_path: Path) -> None:
    wins = tmp_path / "wins.db", 3.0, 7.0
    loses = tmp_path / "loses.db", 7.0, 3.0
    results = []
    for path, fused, alone in (wins, loses):
        planted(path, fused, alone)
        _, result, told = lowered("table", TARGET, database=path)
        (table,) = (fusion for fusion in told if fusion.kind == "table")
        assert (table.source, table.taken) == ("database", path == wins[0])
        assert table.fused_us == pytest.approx(fused)
        assert alone < table.apart_us < alone + 1  # with a pass over 1152 codes
        results.append(result)
    assert torch.equal(*results)


@needs_tables
def test_rows_that_scatter_more_than_they_differ_do_not_decide(tmp_path: Path) -> None:
    planted(tmp_path / "loose.db", 7.0, 3.0, spread=0.5)
    _, _, told = lowered("table", TARGET, database=tmp_path / "loose.db")
    assert {(fusion.source, fusion.taken) for fusion in told} == {("predicted", True)}


@needs_tables
def test_rows_of_other_versions_do_not_decide(tmp_path: Path) -> None:
    """They choose schedules, which all of one layer compare; these are two layers."""
    planted(tmp_path / "old.db", 7.0, 3.0, compiler="tvm 0.1")
    _, _, told = lowered("table", TARGET, database=tmp_path / "old.db")
    assert {(fusion.source, fusion.taken) for fusion in told} == {("predicted", True)}


@needs_tables
def test_tuning_measures_both_ways() -> None:
    engine, _, _ = lowered("table", TARGET)
    layers = layers_of(engine.graph, TARGET, [torch.zeros(2, 9, 32)], engine.isa)
    assert {(layer.table, layer.to_float): calls for layer, calls in layers.items()} == {
        (True, False): 1, (False, False): 0, (False, True): 1,
    }  # fmt: skip


# ---------------------------------------------------------------- what a person sees


def test_the_report_lists_refused_fusions_with_both_figures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Residual(), nn.Conv2d(4, 3, 1), Residual()).eval(), torch.randn(1, 3, 9, 14)
    target = losing("sum of codes")
    compiled = qc.compile(model, x, calibration=[x], target=target, backend="tvm", threads=1, progress=False)
    (row,) = compiled.to_dict()["fusions"]
    assert (row["kind"], row["taken"], row["source"]) == ("sum of codes", False, "predicted")
    assert len(row["where"]) == 2 and row["fused_us"] > row["apart_us"] > 0
    line = " ".join(str(compiled.report()).split())
    assert f"refused: sum of codes at {row['where'][0]}" in line
    assert f"{row['fused_us']:,.0f} µs fused, {row['apart_us']:.3g} µs apart (predicted)" in line
    page = compiled.report().save(tmp_path / "report.html").read_text()
    assert "Fusions weighed" in page and "<td>refused</td><td>sum of codes</td>" in page
