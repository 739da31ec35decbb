"""Strided convolutions of few channels become dense ones; the same integers come out."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from qcompiler.api import explain
from qcompiler.backends.ort import Ort, write_onnx
from qcompiler.backends.ort.stem import SPACE_TO_DEPTH
from qcompiler.backends.reference import Reference
from qcompiler.proof import quantized


def test_the_law() -> None:
    assert SPACE_TO_DEPTH.check(torch.Generator().manual_seed(0)) is None


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "size", "rewritten"),
    [
        (3, 7, 2, 3, (32, 32), True),
        (3, 3, 2, 1, (17, 20), True),
        (1, 4, 4, 0, (18, 16), True),  # the last two rows are cut
        (3, 3, 2, (0, 1), (15, 15), True),
        (4, 3, 2, 1, (16, 16), False),
        (3, 3, 1, 1, (16, 16), False),
        (3, 8, 8, 0, (16, 16), False),
    ],
)
def test_the_same_integers(
    channels: int, kernel: int, stride: int, padding: int | tuple[int, int], size: tuple[int, int],
    rewritten: bool, tmp_path: Path,
) -> None:  # fmt: skip
    model = nn.Sequential(nn.Conv2d(channels, 8, kernel, stride, padding), nn.ReLU(), nn.Conv2d(8, 4, 1))
    x = torch.randn(2, channels, *size)
    decision = explain(model.eval(), x)
    graph = quantized(decision)
    engine, reference = Ort().lower(graph, threads=1, folder=tmp_path), Reference().lower(graph)
    kernels = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert ("SpaceToDepth" in kernels) is rewritten
    assert kernels.count("QLinearConv") == 2 and kernels.count("QuantizeLinear") == 1
    ran = {layer.node: layer.kernel for layer in engine.execution(decision.plan).layers}
    assert [ran[layer.node] for layer in decision.plan.layers] == ["QLinearConv", "QLinearConv"]
    assert all(node.max_lsb == 0 for node in engine.verify([x]))
    for batch in (1, 2, 5):
        x = torch.randn(batch, channels, *size)
        assert torch.equal(engine([x])[0], reference([x])[0])


def test_a_portable_file_keeps_the_convolution_as_it_is(tmp_path: Path) -> None:
    graph = quantized(explain(nn.Conv2d(3, 8, 7, 2, 3).eval(), torch.randn(2, 3, 32, 32)))
    write_onnx(graph, tmp_path / "model.onnx")
    (conv,) = (node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "Conv")
    assert next(list(a.ints) for a in conv.attribute if a.name == "strides") == [2, 2]
