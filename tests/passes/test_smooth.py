"""SmoothQuant: the same function with smaller outliers, or the reason why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.ir import Graph, arguments, evaluate, trace
from qcompiler.numerics import sqnr
from qcompiler.passes.calibrate import Ranges, calibrate
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import planned
from qcompiler.passes.simulate import expected_sqnr
from qcompiler.passes.smooth import norm_outputs, smooth
from qcompiler.progress import silent
from qcompiler.recipe import Recipe
from qcompiler.rewrite import run
from qcompiler.target import ONNX_RUNTIME_CPU

WIDTH = 16
STATIC = Recipe(name="static")


class Block(nn.Module):
    """A norm whose gain has outliers, and what reads it."""

    def __init__(self, reads: Any, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm or nn.LayerNorm(WIDTH)
        if isinstance(self.norm.weight, Tensor):
            self.norm.weight.data[:2] = 40.0
        self.q, self.k = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12, bias=False)
        self.reads = reads

    def forward(self, x: Tensor) -> Any:
        return self.reads(self.norm(x), self.q, self.k)


def both(y: Tensor, q: nn.Module, k: nn.Module) -> tuple[Tensor, Tensor]:
    return q(y), k(y)


def observed(model: nn.Module, x: Tensor) -> tuple[Graph, Ranges]:
    graph = run(CANONICAL, trace(model.eval(), x))
    return graph, calibrate(graph, [x], norm_outputs(graph))


def outcome(graph: Graph) -> list[tuple[str, str]]:
    return [(note.outcome, note.reason) for note in graph.notes if note.rule == "smooth"]


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH, bias=False), nn.RMSNorm(WIDTH)], ids=str
)
@pytest.mark.parametrize("exponent", [0.5, None])
def test_the_function_stays_and_the_outliers_shrink(norm: nn.Module, exponent: float | None) -> None:
    x = torch.randn(3, 5, WIDTH)
    graph, ranges = observed(Block(both, norm), x)
    after = smooth(graph, ranges, exponent=exponent)
    assert outcome(after) == [("applied", "")]
    for old, new in zip(evaluate(graph, [x]), evaluate(after, [x]), strict=True):
        assert sqnr(old, new) > 100  # a relative change of 1e-5
    (name,) = (node.name for node in norm_outputs(after))
    largest = calibrate(after, [x], norm_outputs(after))[name].largest
    before = ranges[name].largest
    assert before is not None and largest is not None
    assert largest.max() / largest.min() < 0.5 * before.max() / before.min()


def test_smoothing_raises_the_quality_of_the_quantized_block() -> None:
    x = torch.randn(3, 5, WIDTH)
    graph, ranges = observed(Block(both), x)
    wanted = [evaluate(graph, [x])]
    quality = [
        expected_sqnr(g, planned(g, [x], STATIC, ONNX_RUNTIME_CPU, silent).plan, [[x]], wanted)
        for g in (graph, smooth(graph, ranges))
    ]
    assert quality[1] > quality[0] + 3


def test_all_readers_share_one_factor_through_a_view() -> None:
    x = torch.randn(3, 5, WIDTH)
    graph, ranges = observed(Block(lambda y, q, k: (q(y), k(y.view(-1, WIDTH)))), x)
    after = smooth(graph, ranges, exponent=0.5)
    assert outcome(after) == [("applied", "")]
    factors = [
        after.tensors[str(arguments(new)["weight"].target)]
        / graph.tensors[str(arguments(old)["weight"].target)]
        for old, new in zip(linears(graph), linears(after), strict=True)
    ]
    torch.testing.assert_close(factors[0], factors[1][:1].expand_as(factors[0]))


def linears(graph: Graph) -> list[Any]:
    return [node for node in graph.nodes if "linear" in str(node.target)]


class Tied(nn.Module):
    """Two norms feed one weight, and one gain serves two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(WIDTH) * 9 + 0.1)
        self.shared = nn.Linear(WIDTH, 12)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = F.layer_norm(x, (WIDTH,), self.gain)
        second = F.layer_norm(y, (WIDTH,), self.gain)
        return self.shared(first), self.shared(second), self.shared(y.tanh())


def test_tied_weights_and_gains_are_changed_for_each_reader_alone() -> None:
    x, y = torch.randn(3, WIDTH), torch.randn(3, WIDTH) * torch.logspace(-2, 2, WIDTH)
    graph = run(CANONICAL, trace(Tied().eval(), (x, y)))
    after = smooth(graph, calibrate(graph, [(x, y)], norm_outputs(graph)), exponent=0.5)
    assert outcome(after) == [("applied", ""), ("applied", "")]
    for old, new in zip(evaluate(graph, [x, y]), evaluate(after, [x, y]), strict=True):
        assert sqnr(old, new) > 100


@pytest.mark.parametrize(
    ("reads", "norm", "why"),
    [
        (lambda y, q, k: (q(y), y + 1), None, "its output is also read by add"),
        (lambda y, q, k: (q(y), y), None, "its output is also read by output"),
        (lambda y, q, k: q(y.exp()), None, "its output is also read by exp"),
        (lambda y, q, k: F.linear(y, y.view(-1, WIDTH)), None, "its output is also read by linear"),
        (
            lambda y, q, k: y.view(-1, 5 * WIDTH) @ torch.ones(5 * WIDTH, 2),
            None,
            "the channels are not the features",
        ),
        (both, nn.LayerNorm(WIDTH, elementwise_affine=False), "it has no gain to fold into"),
    ],
    ids=["residual", "result", "function", "as a weight", "flattened", "no gain"],
)
def test_a_refusal_says_what_is_in_the_way(reads: Any, norm: nn.Module | None, why: str) -> None:
    x = torch.randn(3, 5, WIDTH)
    graph, ranges = observed(Block(reads, norm), x)
    after = smooth(graph, ranges, exponent=0.5)
    ((refused, reason),) = outcome(after)
    assert refused == "refused" and reason.startswith(why)
    assert after.tensors.keys() == graph.tensors.keys()


def test_a_norm_without_outliers_is_left_alone() -> None:
    model = Block(both)
    for layer in (model.norm, model.q, model.k):
        assert isinstance(layer.weight, Tensor)
        layer.weight.data = torch.ones_like(layer.weight)
    x = torch.eye(WIDTH)
    graph, ranges = observed(model, x)
    assert outcome(smooth(graph, ranges)) == [("refused", "no exponent lowers the estimated error")]
