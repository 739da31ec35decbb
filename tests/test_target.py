"""Targets are tables: one row per op, formats that are known, and answers for everything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import fx

from qcompiler.backends.reference.formulas import FORMULAS
from qcompiler.errors import TargetError
from qcompiler.numerics import parse_format
from qcompiler.rewrite import Trait, traits
from qcompiler.target import ONNX_RUNTIME_CPU, TARGETS, Target, find_target, register_target
from qcompiler.target.machine import INTERESTING, this_cpu

aten = torch.ops.aten
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


@every_target
def test_the_table_is_consistent(target: Target) -> None:
    assert len({row.op for row in target.rows}) == len(target.rows)
    assert target.activations[target.activation].executes == "integer"
    assert target.weights[target.weight].executes == "integer"
    for row in target.rows:
        names = {argument.name for argument in row.op._schema.arguments}
        assert {*row.operands, *filter(None, (row.weight, row.bias))} <= names, row.kernel
        assert row.formula in FORMULAS
        contracts = row.weight is not None or row.formula == "attention"
        assert row.starts == contracts  # only a contraction is worth quantizing an input for
    assert all(Trait.MOVES_DATA in traits(op) for op in target.carries_moves)


@every_target
def test_every_format_is_one_that_numerics_knows_and_says_why_it_is_slow(target: Target) -> None:
    for table in (target.activations, target.weights):
        for name, support in table.items():
            assert parse_format(name).name == name
            assert bool(support.reason) == (support.executes == "float")
    assert {entry.format for entry in target.weight_only} <= set(target.weights)


def node(op: object) -> fx.Node:
    graph = fx.Graph()
    return graph.call_function(op, (graph.placeholder("x"),))  # type: ignore[arg-type]


def test_data_movement_is_one_row_for_all_ops_that_are_carried() -> None:
    row = ONNX_RUNTIME_CPU.row(node(aten.permute.default))
    assert row is not None and (row.formula, row.output, row.starts) == ("move", "same", False)
    assert ONNX_RUNTIME_CPU.row(node(aten.flip.default)) is None
    assert ONNX_RUNTIME_CPU.row(node(aten.gelu.default)) is None
    conv = ONNX_RUNTIME_CPU.row(node(aten.conv2d.default))
    assert conv is not None and (conv.kernel, conv.output) == ("QLinearConv", "required")


def test_an_unknown_format_or_target_is_refused_with_what_is_known() -> None:
    with pytest.raises(TargetError, match=r"'cpu' cannot hold activations in 'int4', because it knows uint8"):
        ONNX_RUNTIME_CPU.supports("int4", "activations")
    with pytest.raises(TargetError, match=r"no target 'tpu'; choose one of .*cpu"):
        find_target("tpu")


def test_a_target_is_found_once_registered_and_may_be_given_as_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qcompiler.target.base.TARGETS", dict(TARGETS))
    other = replace(ONNX_RUNTIME_CPU, name="other")
    assert find_target(other) is other
    with pytest.raises(TargetError):
        find_target("other")
    assert register_target(other) is other is find_target("other")


def test_the_cpu_says_what_the_system_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(this_cpu().features) <= set(INTERESTING)
    text = "model name : Fast 9000\nflags : fpu avx2 avx_vnni sse\n\nmodel name : the second core\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    found = this_cpu.__wrapped__()
    assert (found.name, found.features) == ("Fast 9000", ("avx2", "avx_vnni"))
    assert found.flags == {"fpu", "avx2", "avx_vnni", "sse"}

    arm = "processor : 0\nFeatures : fp asimd asimddp i8mm\n"
    monkeypatch.setattr(Path, "read_text", lambda self: arm)
    assert this_cpu.__wrapped__().features == ("asimddp", "i8mm")

    def absent(self: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert this_cpu.__wrapped__().features == ()
