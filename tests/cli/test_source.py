"""MODEL: every form of it, and the data that can be given beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.export import ExportedProgram

from qcompiler.cli.source import find_source, with_rows


def test_a_built_in_model_says_where_its_weights_come_from() -> None:
    source = find_source("lenet", batch=5)
    assert not source.weights_are_random
    assert source.metric is not None
    assert source.example_inputs[0].shape == (5, 1, 8, 8)


def test_a_factory_may_return_a_tuple(zoo: Path) -> None:
    source = find_source(f"{zoo / 'zoo.py'}:mlp")
    assert source.name == "mlp"
    assert source.example_inputs[0].shape == (2, 32)
    assert [batch.shape for batch in source.calibration] == [(8, 32)]
    assert source.metric.name == "agreement"


def test_a_factory_may_be_a_class_with_the_attributes(zoo: Path) -> None:
    source = find_source(f"{zoo / 'zoo.py'}:Bundled")
    assert set(source.example_inputs) == {"input"}
    assert source.calibration is None


def test_a_module_may_carry_its_example_inputs(zoo: Path) -> None:
    source = find_source(f"{zoo / 'zoo.py'}:itself")
    assert isinstance(source.model, torch.nn.Module)
    assert source.example_inputs.shape == (2, 32)


def test_a_factory_may_return_a_program(zoo: Path) -> None:
    source = find_source(f"{zoo / 'zoo.py'}:exported")
    assert isinstance(source.model, ExportedProgram)
    assert source.example_inputs[0].shape == (2, 32)


def test_a_program_brings_its_own_inputs(tmp_path: Path) -> None:
    path = tmp_path / "linear.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.ones(4, 3),)), path)
    source = find_source(str(path))
    assert source.model == path
    assert torch.equal(source.example_inputs[0], torch.ones(4, 3))


def test_rows_are_repeated_or_cut_and_nothing_else_changes() -> None:
    table = torch.arange(3.0)
    inputs = {"x": torch.tensor([[1.0], [2.0]]), "table": table, "flag": True}
    found = with_rows(inputs, 5)
    assert found["x"].flatten().tolist() == [1, 2, 1, 2, 1]
    assert found["table"] is table
    assert with_rows(inputs, 1)["x"].tolist() == [[1.0]]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_calibration_comes_in_batches_of_the_example(zoo: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    rows = torch.randn(7, 32)
    if suffix == ".npz":
        np.savez(path, input=rows.numpy())
    else:
        save_file({"input": rows}, path)
    found = find_source(f"{zoo / 'zoo.py'}:mlp", calibration=path).calibration
    assert [batch.shape for (batch,) in found] == [(2, 32)] * 3  # the seventh row fills no batch
    assert torch.equal(torch.cat([batch for (batch,) in found]), rows[:6])


def test_several_inputs_are_told_apart_by_name(zoo: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", ids=np.zeros((4, 3)), mask=np.ones((4, 3)))
    (first, _) = find_source(f"{zoo / 'zoo.py'}:mlp", calibration=tmp_path / "rows.npz").calibration
    assert {name: array.shape for name, array in first.items()} == {"ids": (2, 3), "mask": (2, 3)}
