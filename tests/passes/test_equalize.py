"""Cross-layer equalization: the same function with equal ranges, or the reason why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.ir import Graph, arguments, evaluate, trace
from qcompiler.numerics import sqnr
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.equalize import equalize, input_range
from qcompiler.rewrite import run
from qcompiler.target import NVIDIA_GPU

IMAGE, ROWS = (2, 4, 8, 8), (3, 8)


class Function(nn.Module):
    def __init__(self, function: Any, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


def uneven(layer: Any) -> Any:
    """Output channels of very different range."""
    layer.weight.data *= torch.logspace(-1, 1, len(layer.weight)).reshape(-1, *[1] * (layer.weight.dim() - 1))
    return layer


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    layer: nn.Conv2d = uneven(nn.Conv2d(inputs, outputs, 3, padding=1, **options))
    return layer


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer: nn.Linear = uneven(nn.Linear(inputs, outputs))
    return layer


def before_and_after(model: nn.Module, shape: tuple[int, ...]) -> tuple[Graph, Graph]:
    """The graph, and the equalized one after showing that both are the same function."""
    x = torch.randn(shape)
    graph = run(CANONICAL, trace(model.eval(), x))
    after = equalize(graph)
    for old, new in zip(evaluate(graph, [x]), evaluate(after, [x]), strict=True):
        assert sqnr(old, new) > 100  # a relative change of 1e-5
    return graph, after


def outcomes(graph: Graph) -> list[tuple[str, str]]:
    return [(note.outcome, note.reason) for note in graph.notes if note.rule == "equalize"]


def weights(graph: Graph) -> list[Tensor]:
    return [
        graph.tensors[str(arguments(node)["weight"].target)]
        for node in graph.nodes
        if "conv" in str(node.target) or "linear" in str(node.target)
    ]


CHAINS: dict[str, tuple[Any, tuple[nn.Module, ...], tuple[int, ...]]] = {
    "directly": (lambda x, a, b: b(a(x)), (conv(4, 6), conv(6, 3)), IMAGE),
    "relu": (lambda x, a, b: b(a(x).relu()), (conv(4, 6, bias=False), conv(6, 3)), IMAGE),
    "leaky relu": (lambda x, a, b: b(F.leaky_relu(a(x), 0.2)), (conv(4, 6), conv(6, 3)), IMAGE),
    "pools": (
        lambda x, a, b: b(F.avg_pool2d(F.max_pool2d(a(x).relu(), 2), 2)), (conv(4, 6), conv(6, 3)), IMAGE,
    ),
    "global pool": (
        lambda x, a, b: b(F.adaptive_avg_pool2d(a(x), 1)), (conv(4, 6), nn.Conv2d(6, 3, 1)), IMAGE,
    ),
    "depthwise": (lambda x, a, b: b(a(x).relu()), (conv(4, 6), conv(6, 6, groups=6)), IMAGE),
    "grouped": (lambda x, a, b: b(a(x).relu()), (conv(4, 8, groups=2), conv(8, 4, groups=4)), IMAGE),
    "linear": (lambda x, a, b: b(a(x).relu()), (linear(8, 6), linear(6, 3)), ROWS),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_both_ranges_of_a_channel_become_equal(chain: str) -> None:
    function, layers, shape = CHAINS[chain]
    _, after = before_and_after(Function(function, *layers), shape)
    assert outcomes(after)[-1] == ("applied", "")
    first, second = weights(after)
    groups = int(getattr(layers[1], "groups", 1))
    torch.testing.assert_close(first.flatten(1).abs().amax(1), input_range(second, groups), rtol=0.02, atol=0)


def test_a_chain_of_three_settles() -> None:
    layers = linear(8, 6), linear(6, 6), linear(6, 3)
    _, after = before_and_after(Function(lambda x, a, b, c: c(b(a(x).relu()).relu()), *layers), ROWS)
    first, second, third = weights(after)
    for one, other in ((first, second), (second, third)):
        torch.testing.assert_close(one.abs().amax(1), other.abs().amax(0), rtol=0.05, atol=0)


def test_a_tied_weight_keeps_its_value_for_the_other_reader() -> None:
    shared = linear(8, 8)
    graph, after = before_and_after(
        Function(lambda x, a, b: (b(a(x).relu()), a(x.exp())), shared, linear(8, 3)), ROWS
    )
    assert outcomes(after)[-1] == ("applied", "")
    assert any(tensor is old for tensor in after.tensors.values() for old in graph.tensors.values())


def test_a_channel_without_weights_does_no_harm() -> None:
    first, second = linear(8, 6), linear(6, 3)
    first.weight.data[0], second.weight.data[:, 1] = 0, 0
    _, after = before_and_after(Function(lambda x, a, b: b(a(x).relu()), first, second), ROWS)
    assert all(tensor.isfinite().all() for tensor in after.tensors.values())


def test_of_halves_a_link_is_refused_whose_bias_would_be_infinite_and_the_others_settle() -> None:
    """b / t is beyond 65504 where t < 2000 / 65504, as it is between weights of 1e-4 and of 10."""
    layers = linear(8, 6), linear(6, 6), linear(6, 3)
    for layer, factor in zip(layers, (1e-4, 10.0, 1.0), strict=True):
        layer.weight.data *= factor
    layers[0].bias.data.fill_(2000.0)
    model = Function(lambda x, a, b, c: c(b(a(x).relu()).relu()), *layers).half()
    graph = run(CANONICAL, trace(model.eval(), torch.randn(ROWS).half(), floats=NVIDIA_GPU.floats))
    after = equalize(graph)
    assert outcomes(after)[-2:] == [("refused", "it would leave the range of its type"), ("applied", "")]
    assert all(tensor.isfinite().all() for tensor in after.tensors.values())
    kept, second, third = weights(after)
    assert kept is weights(graph)[0]
    torch.testing.assert_close(second.abs().amax(1), third.abs().amax(0), rtol=0.02, atol=0)


def convs() -> tuple[nn.Module, ...]:
    return conv(4, 4), conv(4, 4)


def linears() -> tuple[nn.Module, ...]:
    return linear(8, 8), linear(8, 8)


HOMOGENEOUS = "is not positively homogeneous in each channel"
TOKENS = (2, 8, 8)
REFUSED: dict[str, tuple[Any, tuple[nn.Module, ...], tuple[int, ...], str]] = {
    "relu6": (lambda x, a, b: b(F.relu6(a(x))), convs(), IMAGE, HOMOGENEOUS),
    "sum with a number": (lambda x, a, b: b(a(x).relu() + 1.0), convs(), IMAGE, HOMOGENEOUS),
    "square": (lambda x, a, b: b(squared(a(x).relu().relu())), convs(), IMAGE, HOMOGENEOUS),
    "two readers": (lambda x, a, b: squared(a(x), b), convs(), IMAGE, "2 ops read its result"),
    "residual": (lambda x, a, b: b(a(x) + x), convs(), IMAGE, HOMOGENEOUS),
    "flatten": (lambda x, a, b: b(a(x).flatten(1)), (conv(4, 2), linear(128, 3)), IMAGE, HOMOGENEOUS),
    "other axis": (
        lambda x, a, b: b(a(x)), (linear(8, 4), nn.Conv1d(8, 2, 1)), TOKENS,
        "its channels are not those that layers.1/conv1d contracts",
    ),
    "pool across features": (lambda x, a, b: b(F.max_pool2d(a(x), 1)), linears(), TOKENS, HOMOGENEOUS),
    "maximum of tokens": (lambda x, a, b: b(a(x).amax(-1)), linears(), TOKENS, HOMOGENEOUS),
    "weight of run time": (
        lambda x, a, b: F.linear(a(x), x), linears(), ROWS, "the weight of linear_1 is computed at run time",
    ),
    "as a weight": (lambda x, a, b: F.linear(x, a(x)), linears(), ROWS, "linear_1 reads it as a constant"),
    "result": (lambda x, a, b: a(x), linears(), ROWS, "the model returns its result"),
}  # fmt: skip


def squared(y: Tensor, reader: nn.Module | None = None) -> Any:
    return y * y if reader is None else (reader(y), y)


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_is_in_the_way(case: str) -> None:
    function, layers, shape, why = REFUSED[case]
    graph, after = before_and_after(Function(function, *layers), shape)
    reasons = [reason for outcome, reason in outcomes(after) if outcome == "refused"]
    assert not any(outcome == "applied" for outcome, _ in outcomes(after))
    assert reasons[0].endswith(why)
    assert after.tensors.keys() == graph.tensors.keys()
