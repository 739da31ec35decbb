"""Saved models: the same graph and plan come back, the same bytes are written, and nothing is half done."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.artifact import (
    MANIFEST,
    UNSIGNED,
    read_graph,
    read_manifest,
    write_graph,
    write_manifest,
    written_atomically,
)
from qcompiler.errors import ArtifactError
from qcompiler.ir import Graph, evaluate, fingerprint, trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import planned
from qcompiler.passes.materialize import materialize
from qcompiler.passes.simplify import SIMPLIFY_QDQ
from qcompiler.plan import Plan
from qcompiler.progress import silent
from qcompiler.recipe import find_recipe
from qcompiler.rewrite import run
from qcompiler.target import ONNX_RUNTIME_CPU


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 64), nn.GELU(),
        nn.Linear(64, 3),
    )  # fmt: skip


X = torch.linspace(-2, 2, 128).reshape(2, 1, 8, 8)
PARTLY = {"base": "w4a16", "overrides": [{"pattern": "4", "weights": None}]}
FACTS = {"backend": "reference", "target": "cpu", "recipe": {}}


@cache
def quantized(name: str) -> tuple[Graph, Plan]:
    recipe = PARTLY if name == "w4a16" else name
    graph = run(CANONICAL, trace(network().eval(), X))
    plan = planned(graph, [X], find_recipe(recipe), ONNX_RUNTIME_CPU, silent).plan
    return run((materialize(plan), *SIMPLIFY_QDQ), graph), plan


def save(folder: Path, graph: Graph, plan: Plan) -> None:
    with written_atomically(folder) as draft:
        (draft / "model.onnx").write_bytes(b"what the engine runs")
        write_graph(draft, graph, plan)
        write_manifest(draft, FACTS, graph)


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic", "fp8", "w4a16"])
def test_what_is_saved_comes_back(tmp_path: Path, recipe: str) -> None:
    graph, plan = quantized(recipe)
    save(tmp_path / "model", graph, plan)
    manifest = read_manifest(tmp_path / "model")
    again, same_plan = read_graph(tmp_path / "model", manifest)
    assert fingerprint(again) == fingerprint(graph)
    assert (same_plan, again.stage, again.signature.inputs) == (plan, graph.stage, graph.signature.inputs)
    assert torch.equal(evaluate(again, [X])[0], evaluate(graph, [X])[0])
    assert set(manifest["files"]) == {"model.onnx", "graph.txt", "plan.json", "tensors.safetensors"}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name not in UNSIGNED}


def test_equal_calls_write_equal_bytes(tmp_path: Path) -> None:
    for number in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        compiled = qcompiler.compile(model, torch.ones(2, 8), backend="reference", progress=False)
        compiled.save(tmp_path / f"compiled-{number}")
    first, second = (contents(tmp_path / f"compiled-{number}") for number in range(2))
    assert {"graph.txt", "plan.json", "tensors.safetensors", MANIFEST} <= set(first)
    assert first == second


# ---------------------------------------------------------------- everything or nothing


class Broken(Exception):
    """Something that goes wrong in the middle."""


def test_a_failure_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(Broken), written_atomically(tmp_path / "model") as draft:
        (draft / "half").write_text("half")
        raise Broken
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "model", *quantized("int8"))
    before = contents(tmp_path / "model")
    with pytest.raises(Broken), written_atomically(tmp_path / "model") as draft:
        (draft / "half").write_text("half")
        raise Broken

    def full(source: Any, target: Any, move: Any = os.replace) -> None:
        if Path(target) == tmp_path / "model" and Path(source).name != "old":
            raise OSError("no space left")
        move(source, target)

    monkeypatch.setattr(os, "replace", full)
    with (
        pytest.raises(ArtifactError, match="no space left; make room"),
        written_atomically(tmp_path / "model"),
    ):
        pass
    assert contents(tmp_path / "model") == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_saved_model_is_replaced_whole(tmp_path: Path) -> None:
    save(tmp_path / "deep" / "model", *quantized("int8"))
    (tmp_path / "deep" / "model" / "model.onnx.data").write_text("of the old one")
    save(tmp_path / "deep" / "model", *quantized("int8-dynamic"))
    assert "model.onnx.data" not in contents(tmp_path / "deep" / "model")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


@pytest.mark.parametrize("kind", ["file", "folder", "another manifest"])
def test_what_is_no_saved_model_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "precious"
    kept = path if kind == "file" else path / ("notes.txt" if kind == "folder" else MANIFEST)
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps({"name": "a web page", "files": []}))
    with pytest.raises(
        ArtifactError, match="exists and is not a saved model, because it would be overwritten"
    ):
        save(path, *quantized("int8"))
    assert "a web page" in kept.read_text()


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save(tmp_path / "model", *quantized("int8"))
    assert read_manifest(tmp_path / "model")["target"] == "cpu"


# ---------------------------------------------------------------- what was changed since


def test_a_changed_or_missing_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, *quantized("int8"))
    plan = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(plan.replace("int8", "int4"))
    with pytest.raises(
        ArtifactError, match=r"plan\.json' is not the file that was saved, because its SHA-256"
    ):
        read_manifest(folder)
    (folder / "plan.json").unlink()
    with pytest.raises(ArtifactError, match=r"lacks the file 'plan\.json'"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has artifact format 99, because this version reads 1"),
        ({"files": {}}, "has files that do not sign model.onnx"),
        ({"signature": None}, None),
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, change: Any, message: str | None) -> None:
    folder = tmp_path / "model"
    save(folder, *quantized("int8"))
    manifest = {**json.loads((folder / MANIFEST).read_text()), **change}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=message or "signature is malformed"):
        read_graph(folder, read_manifest(folder))
