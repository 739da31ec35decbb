"""Bias correction takes the mean error of rounded weights out of every output channel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.ir import Graph, arguments, evaluate, trace
from qcompiler.numerics import dequantize, quantize
from qcompiler.passes.bias import correct_bias
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import Decision, planned
from qcompiler.passes.weights import weight_params
from qcompiler.progress import silent
from qcompiler.recipe import find_recipe
from qcompiler.rewrite import run
from qcompiler.target import NVIDIA_GPU, ONNX_RUNTIME_CPU

COARSE = {"weights": "int4"}  # so that rounding the weights is what is seen


def decided(model: nn.Module, x: Tensor, recipe: Any = COARSE) -> Decision:
    graph = run(CANONICAL, trace(model.eval(), x))
    return planned(graph, [x], find_recipe(recipe), ONNX_RUNTIME_CPU, silent)


def corrected(found: Decision) -> Graph:
    return correct_bias(found.graph, found.plan, found.ranges)


def with_rounded_weights(found: Decision, graph: Graph, x: Tensor) -> Tensor:
    """The output with weights through Q and D, everything else float."""
    tensors = dict(graph.tensors)
    for planned_weight in found.plan.weights:
        name = str(arguments(graph.by_name[planned_weight.layer])["weight"].target)
        params = weight_params(tensors[name], planned_weight)
        tensors[name] = dequantize(quantize(tensors[name], params), params)
    (y,) = evaluate(replace(graph, tensors=tensors), [x])
    result: Tensor = y
    return result


def balanced(shape: tuple[int, ...], axis: int) -> Tensor:
    """Data whose mean over the batch is, at every position, that of its channel."""
    noise = torch.randn(shape)
    level = (torch.rand(shape[axis]) * 4).reshape(
        [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
    )
    return torch.cat([noise, -noise]) + level


def test_a_corrected_bias_has_the_type_of_its_layer() -> None:
    """A model in halves computes in halves; without a bias it gets one in halves."""
    x = torch.randn(32, 6).bfloat16() + 1
    for bias in (True, False):
        model = nn.Linear(6, 4, bias=bias).bfloat16().eval()
        graph = run(CANONICAL, trace(model, x, floats=NVIDIA_GPU.floats))
        graph = corrected(planned(graph, [x], find_recipe("int8"), NVIDIA_GPU, silent))
        (name,) = (name for name in graph.tensors if name.endswith("bias.corrected"))
        assert graph.tensors[name].dtype == torch.bfloat16
        assert evaluate(graph, [x])[0].dtype == torch.bfloat16


def by_channel(y: Tensor, axis: int) -> Tensor:
    return y.double().movedim(axis, 0).flatten(1)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(32, 6), (64, 32)),
        (nn.Linear(32, 6, bias=False), (16, 4, 32)),
        (nn.Conv2d(8, 6, 3), (4, 8, 12, 12)),
        (nn.Conv2d(8, 8, 3, groups=8, bias=False), (4, 8, 12, 12)),
        (nn.Conv2d(8, 6, 1, groups=2, stride=2), (4, 8, 12, 12)),
        (nn.Conv1d(8, 6, 1), (4, 8, 12)),
    ],
    ids=["linear", "tokens", "conv", "depthwise", "grouped", "conv1d"],
)
def test_no_channel_keeps_a_mean_error(layer: nn.Module, shape: tuple[int, ...]) -> None:
    axis = -1 if isinstance(layer, nn.Linear) else 1
    x = balanced(shape, axis)
    found = decided(layer, x)
    (wanted,) = evaluate(found.graph, [x])
    spread = by_channel(wanted, axis).std(1)
    old, new = (
        by_channel(with_rounded_weights(found, graph, x) - wanted, axis).mean(1).abs()
        for graph in (found.graph, corrected(found))
    )
    assert (old > 1e-2 * spread).any()
    assert (new < 1e-3 * spread).all()


def test_the_correction_is_the_mean_input_through_the_error_of_the_weights() -> None:
    x = torch.randn(64, 16) + 2
    layer = nn.Linear(16, 4)
    found = decided(layer, x)
    after = corrected(found)
    (node,) = (n for n in after.nodes if n.name == "linear")
    (planned_weight,) = found.plan.weights
    params = weight_params(layer.weight.detach(), planned_weight)
    error = dequantize(quantize(layer.weight.detach(), params), params) - layer.weight.detach()
    bias = after.tensors[str(arguments(node)["bias"].target)]
    torch.testing.assert_close(bias, layer.bias.detach() - error @ x.mean(0))


def test_a_shared_bias_is_corrected_for_each_layer_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
            self.second.bias = self.first.bias

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.first(x), self.second(x.relu())

    found = decided(Tied(), torch.randn(64, 16) + 1)
    after = corrected(found)
    biases = [
        str(arguments(n)["bias"].target)
        for n in after.nodes
        if "linear" in n.name and n.op == "call_function"
    ]
    assert len(set(biases)) == 2
    assert [note.outcome for note in after.notes if note.rule == "correct-bias"] == ["applied", "applied"]


@pytest.mark.parametrize(
    ("model", "shape", "recipe"),
    [
        (nn.Linear(64, 4), (8, 64), "w4a16"),
        (nn.Linear(64, 4), (8, 64), "int8-dynamic"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(8, 4)), (2, 3, 8, 8), "int8"),
    ],
    ids=["weights only", "dynamic", "another axis"],
)
def test_a_layer_whose_channels_were_not_observed_is_left_alone(
    model: nn.Module, shape: tuple[int, ...], recipe: str
) -> None:
    found = decided(model, torch.randn(shape), recipe)
    notes = [note for note in corrected(found).notes if note.rule == "correct-bias"]
    assert notes[-1].outcome == "refused"
    assert notes[-1].reason == "its input was not observed per channel"
