"""Float functions for GPUs, compiled here without one: sources, the manifest, what is left out and why."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.backends.shapes import shapes_of
from qcompiler.backends.tvm.floatpath import cuda
from qcompiler.backends.tvm.floatpath.cuda import emitted, write
from qcompiler.errors import TargetError
from tests.backends.tvm.floatpath.example import graph_of
from tests.backends.tvm.sets import pytestmark

__all__ = ["pytestmark"]


def function(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return torch.softmax(x * 2 + y, -1), torch.cumsum(x, 1), F.gelu(x) + 1, (x @ w) * 0.5


INPUTS = [torch.randn(64, 80), torch.randn(80), torch.randn(80, 96)]


def test_rows_of_a_maximum_are_divided_among_blocks() -> None:
    x = torch.randn(64, 80)
    graph = graph_of(lambda x: (x * 2).amax(1), [x])
    (found,) = emitted(graph, shapes_of(graph, [x])).functions
    assert [launch.blocks for launch in found.launches] == [(64, 1, 1)]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_fusions_become_kernels_and_the_rest_is_told(architecture: str) -> None:
    graph = graph_of(function, INPUTS)
    found = emitted(graph, shapes_of(graph, INPUTS), architecture)
    ops = [[op.split(".")[1] for op in each.ops] for each in found.functions]
    assert ops == [["mul", "add", "softmax"], ["gelu", "add"], ["mul"]]
    for each in found.functions:
        assert each.launches
        for launch in each.launches:
            assert f"__launch_bounds__({math.prod(launch.threads)}) {launch.kernel}(" in each.source
            assert math.prod(launch.blocks) >= 1
    softmax = found.functions[0]
    assert softmax.launches[0].blocks == (64, 1, 1)  # one for each row
    assert "expf(" in softmax.source and softmax.bytes == 4 * (64 * 80 + 80 + 64 * 80)
    assert found.left == {
        "cumsum": "aten.cumsum.default is not in the table of float ops",
        "matmul": "it is a large product of matrices, which is for a library",
    }


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)  # with nvcc there would be cubins
    graph = graph_of(function, INPUTS)
    found = emitted(graph, shapes_of(graph, INPUTS))
    files = write(found, tmp_path / "kernels")
    manifest = json.loads(files[-1].read_text())
    assert manifest["architecture"] == "sm_80" and manifest["not_covered"] == found.left
    assert [row["file"] for row in manifest["functions"]] == [path.name for path in files[:-1]]
    assert files[0].read_text() == found.functions[0].source
    assert manifest["functions"][0]["arguments"][0].endswith("f32[64, 80]")
    assert manifest["functions"][0]["launches"][0]["blocks"] == [64, 1, 1]


def test_what_no_rule_binds_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that refuses stands for what DLight cannot do."""

    def refused(*given: object) -> str:
        raise ValueError("cannot be bound")

    monkeypatch.setattr(cuda, "source_of", refused)
    inputs = [torch.randn(4, 4)]
    graph = graph_of(lambda x: torch.relu(x) * 2, inputs)
    found = emitted(graph, shapes_of(graph, inputs))
    assert not found.functions
    assert all(
        "cannot be compiled for CUDA, because DLight has no schedule for it (ValueError); leave it to torch"
        in why
        for why in found.left.values()
    )


def test_another_architecture_is_refused() -> None:
    graph = graph_of(torch.relu, INPUTS[:1])
    with pytest.raises(TargetError, match="choose one of sm_80"):
        emitted(graph, shapes_of(graph, INPUTS[:1]), "sm_12")
