"""Regions of integer arithmetic, and what they compute: the reference against integers counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.backends.reference import Reference
from qcompiler.ir import Graph, arguments, evaluate, trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import planned
from qcompiler.passes.materialize import materialize
from qcompiler.passes.partition import partition
from qcompiler.passes.simplify import SIMPLIFY_QDQ
from qcompiler.progress import silent
from qcompiler.recipe import find_recipe
from qcompiler.rewrite import run
from qcompiler.target import ONNX_RUNTIME_CPU

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
BATCHES = (1, 3)


def lowered(model: nn.Module, *inputs: Tensor, recipe: Any = "int8") -> Graph:
    graph = run(CANONICAL, trace(model.eval(), inputs))
    plan = planned(graph, [inputs], find_recipe(recipe), ONNX_RUNTIME_CPU, silent).plan
    return run((materialize(plan), *SIMPLIFY_QDQ), graph)


class Code:
    """A tensor as integers by hand: x = scale * (q - zero)."""

    def __init__(self, q: Ints, scale: Any, zero: Any) -> None:
        self.q, self.scale, self.zero = q, np.float32(scale), int(zero)

    @property
    def steps(self) -> Ints:
        return self.q - self.zero

    @property
    def decoded(self) -> Floats:
        return self.steps.astype(np.float32) * self.scale

    def like(self, steps: npt.NDArray[Any]) -> Ints:
        """sat(rne(steps) + z) with this tensor's zero point."""
        codes: Ints = np.clip(np.rint(steps).astype(np.int64) + self.zero, 0, 255)
        return codes


def pair_of(node: Any, graph: Graph) -> tuple[Tensor, Tensor]:
    given = arguments(node)
    return graph.tensors[str(given["scale"].target)], graph.tensors[str(given["zero_point"].target)]


def results(graph: Graph, x: Tensor) -> list[Code]:
    """What the reference returns, as codes; every result of the graph must be the decoding of codes."""
    executable = Reference(ONNX_RUNTIME_CPU).lower(graph)
    found = []
    for node, y in zip(graph.results, executable([x]), strict=True):
        assert node.target is torch.ops.qcompiler.dequantize.default
        scale, zero = pair_of(node, graph)
        q = np.rint(y.double().numpy() / scale.double().item()).astype(np.int64) + int(zero)
        found.append(Code(q, scale.item(), zero.item()))
        assert np.array_equal(found[-1].decoded, y.numpy())
    return found


def encoded(graph: Graph, x: Tensor) -> Code:
    """The input by the definition: sat(rne(x / s) + z)."""
    (quantize,) = (node for node in graph.inputs[0].users if "quantize" in str(node.target))
    scale, zero = pair_of(quantize, graph)
    steps = np.rint(x.numpy() / scale.numpy()).astype(np.int64)
    return Code(np.clip(steps + zero.item(), 0, 255), scale.item(), zero.item())


def constants(
    graph: Graph, layer: str, weight: Tensor, bias: Tensor | None, x: Code
) -> tuple[Ints, Ints, Floats]:
    """Codes of weight and bias, and s_x s_w, from the float ones and the scales that were chosen."""
    scale = graph.tensors[f"{layer}.weight.scale"].numpy()
    codes = np.rint(weight.detach().numpy() / scale.reshape(-1, *[1] * (weight.dim() - 1))).astype(np.int64)
    step = x.scale * scale
    added = np.zeros(len(scale)) if bias is None else bias.detach().double().numpy() / step.astype(np.float64)
    return codes, np.rint(added).astype(np.int64), step


def convolve(x: Code, w: Ints, bias: Ints, conv: Any) -> Ints:
    """sum over the kernel of (q_x - z_x) q_w + q_b, position by position; outside the image q_x = z_x."""
    (sh, sw), (ph, pw), (dh, dw) = conv.stride, conv.padding, conv.dilation
    q = np.pad(x.q, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=x.zero) - x.zero
    outputs, inputs, kh, kw = w.shape
    height, width = (
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(q.shape[2:], (dh, dw), (kh, kw), (sh, sw), strict=True)
    )
    result = np.zeros((len(q), outputs, height, width), dtype=np.int64)
    for o in range(outputs):
        first = o // (outputs // conv.groups) * inputs
        for i in range(height):
            for j in range(width):
                window = q[
                    :, first : first + inputs, i * sh : i * sh + dh * kh : dh, j * sw : j * sw + dw * kw : dw
                ]
                result[:, o, i, j] = (window[:, :, :kh, :kw] * w[o]).sum((1, 2, 3)) + bias[o]
    return result


def requantize(accumulator: Ints, step: Floats, y: Code, axis: int) -> Ints:
    """rne(float32(acc) * float32(s_x s_w / s_y)) + z_y"""
    multiplier = (step / y.scale).reshape(
        [-1 if i == axis % accumulator.ndim else 1 for i in range(accumulator.ndim)]
    )
    return y.like(accumulator.astype(np.float32) * multiplier)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([
            nn.Conv2d(4, 6, 3),
            nn.Conv2d(4, 6, 3, padding=1, bias=False),
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1)),
            nn.Conv2d(4, 8, 3, dilation=2, padding=2, groups=2),
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.Conv2d(4, 4, 1, stride=2),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]


class Linears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 8), nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu())
        return y


class Others(nn.Module):
    """Two convolutions, and everything that may follow them on codes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        a, b = self.a(x), self.b(x)
        return [
            a, b, a + b, (b + a).relu(), a * b, F.avg_pool2d(a, 2), F.adaptive_avg_pool2d(a, 1),
            torch.cat([a, b], 1), F.max_pool2d(a, 3, 2, 1), a.sigmoid(), F.leaky_relu(b, 0.1),
            a.transpose(1, 2),
        ]  # fmt: skip


SHAPES: dict[Callable[[], nn.Module], tuple[int, ...]] = {
    Convolutions: (4, 4, 7, 6), Linears: (4, 3, 12), Others: (4, 3, 6, 6),
}  # fmt: skip


@cache
def quantized(model: Callable[[], nn.Module]) -> tuple[Any, Graph]:
    """A model and its quantized graph, made once for all tests."""
    torch.manual_seed(0)
    made = model()
    return made, lowered(made, torch.randn(SHAPES[model]) + 0.3)


@pytest.mark.parametrize("batch", BATCHES)
def test_convolutions_are_exact(batch: int) -> None:
    model, graph = quantized(Convolutions)
    x = torch.randn(batch, 4, 7, 6) * 1.5  # some of it saturates
    codes = encoded(graph, x)
    assert 0 < codes.zero < 255  # so that padding with anything but the zero point would show
    for number, (layer, y) in enumerate(zip(model.layers, results(graph, x), strict=True)):
        w, b, step = constants(graph, f"layers.{number}", layer.weight, layer.bias, codes)
        assert np.array_equal(y.q, requantize(convolve(codes, w, b, layer), step, y, axis=1))


@pytest.mark.parametrize("batch", BATCHES)
def test_linears_are_exact_with_codes_and_with_floats_as_result(batch: int) -> None:
    model, graph = quantized(Linears)
    x = torch.randn(batch, 3, 12)
    (y,) = Reference(ONNX_RUNTIME_CPU).lower(graph)([x])
    codes = encoded(graph, x)
    w, b, step = constants(graph, "first", model.first.weight, model.first.bias, codes)
    hidden = Code(codes.q, graph.tensors["relu.scale"].item(), graph.tensors["relu.zero_point"].item())
    hidden.q = requantize(codes.steps @ w.T + b, step, hidden, axis=-1)
    assert hidden.zero == 0
    w, _, step = constants(graph, "second", model.second.weight, None, hidden)
    assert np.array_equal((hidden.steps @ w.T).astype(np.float32) * step, y.numpy())


def windows(q: Ints, size: int) -> Ints:
    """[N, C, H, W] -> [N, C, H / size, W / size, size^2]"""
    n, c, h, w = q.shape
    return (
        q.reshape(n, c, h // size, size, w // size, size)
        .transpose(0, 1, 2, 4, 3, 5)
        .reshape(n, c, h // size, w // size, -1)
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_what_follows_a_convolution_is_exact(batch: int) -> None:
    _, graph = quantized(Others)
    a, b, total, relu, product, mean, average, joined, largest, sigmoid, leaky, moved = results(
        graph, torch.randn(batch, 3, 6, 6)
    )
    one, other = a.steps.astype(np.float32), b.steps.astype(np.float32)
    for y in (total, relu):
        assert np.array_equal(y.q, y.like(one * (a.scale / y.scale) + other * (b.scale / y.scale)))
    assert relu.zero == 0
    assert np.array_equal(product.q, product.like(one * a.scale * (other * b.scale) / product.scale))
    pooled = windows(a.steps, 2).sum(-1).astype(np.float32) * np.float32(a.scale / (mean.scale * 4))
    assert np.abs(mean.q - mean.like(pooled)).max() <= 1  # engines differ in where they divide
    multiplier = np.float32(np.float64(a.scale) / (np.float64(average.scale) * 36))
    assert np.array_equal(
        average.q, average.like(a.steps.sum((2, 3), keepdims=True).astype(np.float32) * multiplier)
    )
    parts = [joined.like(part.decoded / joined.scale) for part in (a, b)]
    assert np.array_equal(joined.q, np.concatenate(parts, 1))
    padded = np.pad(a.q, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0)
    tops = [padded[:, :, i : i + 5 : 2, j : j + 5 : 2] for i in range(3) for j in range(3)]
    assert np.array_equal(largest.q, np.max(tops, 0))
    assert np.array_equal(
        sigmoid.q, sigmoid.like(torch.sigmoid(torch.from_numpy(a.decoded)).numpy() / sigmoid.scale)
    )
    slope = np.where(b.decoded > 0, b.decoded, b.decoded * np.float32(0.1))
    assert np.array_equal(leaky.q, leaky.like(slope / leaky.scale))
    assert np.array_equal(moved.q, a.q.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("model", [Convolutions, Others])
def test_the_simulation_in_floats_is_within_one_code_of_the_integers(model: Callable[[], nn.Module]) -> None:
    _, graph = quantized(model)
    x = torch.randn(3, *SHAPES[model][1:])
    for code, simulated in zip(results(graph, x), evaluate(graph, [x]), strict=True):
        steps = np.abs(simulated.double().numpy() - code.decoded) / code.scale
        assert steps.max() < 1.001
        assert (steps > 0.5).mean() < 0.01


# ---------------------------------------------------------------- regions


def test_every_planned_kernel_is_one_region_and_nothing_else() -> None:
    _, graph = quantized(Linears)
    first, second = partition(graph, ONNX_RUNTIME_CPU).values()
    assert (first.anchor.name, [n.name for n in first.chain], first.returns_codes) == (
        "linear",
        ["relu"],
        True,
    )
    assert first.result.target is torch.ops.qcompiler.quantize.default
    assert (second.anchor.name, second.chain, second.returns_codes) == ("linear_1", (), False)
    assert second.result is second.anchor


@pytest.mark.parametrize("recipe", ["w8a16", "fp8", {"weights": None}], ids=["weights only", "fp8", "float"])
def test_nothing_is_integer_where_only_storage_is_narrow(recipe: Any) -> None:
    assert not partition(lowered(Linears(), torch.randn(4, 12), recipe=recipe), ONNX_RUNTIME_CPU)


def test_dynamic_linears_are_regions_that_return_float() -> None:
    regions = partition(lowered(Linears(), torch.randn(4, 12), recipe="int8-dynamic"), ONNX_RUNTIME_CPU)
    assert [region.returns_codes for region in regions.values()] == [False, False]


def test_codes_behind_a_range_taken_at_run_time_are_made_of_floats() -> None:
    """There is no multiplier from one range to the other yet, and the bias is one of floats."""
    torch.manual_seed(0)
    first, x = nn.Linear(16, 32), torch.randn(4, 16)
    nn.init.constant_(first.bias, 3.0)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(32, 8))
    told = {"base": "int8", "name": "told", "overrides": [{"pattern": "0", "dynamic": True}]}
    graph = lowered(model, x, recipe=told)
    regions = partition(graph, ONNX_RUNTIME_CPU).values()
    assert [region.returns_codes for region in regions] == [False, False]
    (found,) = Reference().lower(graph)([x])
    exact = model(x).detach()
    # 8 bits leave about 40 dB of a signal; a bias of 3 that is lost leaves 2.
    assert 10 * torch.log10(exact.square().sum() / (found - exact).square().sum()) > 30
