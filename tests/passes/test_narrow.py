"""Selections move up through what treats rows by themselves, and the model computes the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.ir import Graph, evaluate, trace
from qcompiler.models.bert import Layer
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.rewrite import run

aten = torch.ops.aten


class Model(nn.Module):
    """`compute(module, x)` with some layers of 8 features, on x [B, 5, 8]."""

    def __init__(self, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.compute = compute
        self.first, self.second, self.norm = nn.Linear(8, 8), nn.Linear(8, 6), nn.LayerNorm(8)
        self.rms, self.table = nn.RMSNorm(8), nn.Parameter(torch.randn(5, 8))
        self.gain = nn.Parameter(torch.randn(5, 1))

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, x)


def canonical(compute: Callable[..., Any]) -> Graph:
    """The canonical graph, after a check on other batch sizes that it computes what the model does."""
    torch.manual_seed(0)
    model = Model(compute).eval()
    graph = run(CANONICAL, trace(model, torch.randn(2, 5, 8)))
    for batch in (1, 3):
        x = torch.randn(batch, 5, 8)
        torch.testing.assert_close(evaluate(graph, [x])[0], model(x), rtol=1e-5, atol=1e-6)
    return graph


def rows(graph: Graph, op: Any) -> list[list[int]]:
    """The fixed sizes of the results of an op."""
    shapes = [node.meta["val"].shape for node in graph.nodes if node.target is op]
    return [[size for size in shape if isinstance(size, int)] for shape in shapes]


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, x: m.second(m.norm(m.first(x)))[:, 0],
        lambda m, x: m.second(m.rms(F.gelu(m.first(x))))[:, -1],
        lambda m, x: m.second(m.first(x) + m.table)[:, 2],
        lambda m, x: m.second(m.first(x) * m.gain + x)[:, 3],
        lambda m, x: m.second(x + m.first(m.norm(x)))[:, 0],  # two readers that both become one row
    ],
    ids=["norm", "last", "table", "repeated", "residual"],
)
def test_only_the_row_that_is_read_is_computed(compute: Callable[..., Any]) -> None:
    graph = canonical(compute)
    assert rows(graph, aten.linear.default) == [[8], [6]]
    assert {node.all_input_nodes[0].op for node in graph.nodes if node.target is aten.select.int} <= {
        "placeholder"
    }


@pytest.mark.parametrize(
    ("compute", "left"),
    [
        (lambda m, x: m.second(m.norm(m.first(x)))[:, -1:], 1),
        (lambda m, x: m.second(m.rms(F.gelu(m.first(x))))[:, :1], 1),
        (lambda m, x: m.second(m.first(x) + m.table)[:, 1:3], 2),
        (lambda m, x: m.second(m.first(x) * m.gain + x)[:, ::2], 3),
        (lambda m, x: m.second(m.first(x) + x[:, :1])[:, -2:], 2),  # one row that stands for all
        (lambda m, x: m.second(x + m.first(m.norm(x)))[:, :-1], 4),
    ],
    ids=["norm", "first", "table", "gain", "repeated", "residual"],
)
def test_only_the_range_that_is_read_is_computed(compute: Callable[..., Any], left: int) -> None:
    graph = canonical(compute)
    assert rows(graph, aten.linear.default) == [[left, 8], [left, 6]]
    assert {node.all_input_nodes[0].op for node in graph.nodes if node.target is aten.slice.Tensor} <= {
        "placeholder", "get_attr"
    }  # fmt: skip


def test_a_position_of_a_range_moves_up_to_it() -> None:
    graph = canonical(lambda m, x: m.second(m.first(x)[:, -3:])[:, 0])
    assert rows(graph, aten.linear.default) == [[8], [6]]


def test_a_range_of_the_batch_moves_too() -> None:
    graph = canonical(lambda m, x: m.second(m.first(x))[:1])
    assert rows(graph, aten.linear.default) == [[1, 5, 8], [1, 5, 6]]


def test_a_clamp_stays_with_the_convolution_whose_kernel_computes_it() -> None:
    class Cropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = (self.conv(x).relu() * 2)[:, :, 1:-1]
            return y

    model, x = Cropped().eval(), torch.randn(2, 3, 8, 8)
    graph = run(CANONICAL, trace(model, x))
    torch.testing.assert_close(evaluate(graph, [x])[0], model(x))
    (relu,) = (node for node in graph.nodes if node.target is aten.relu.default)
    assert relu.all_input_nodes[0].target is aten.conv2d.default
    assert [node.target for node in relu.users] == [aten.slice.Tensor]


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, x: m.second(m.first(x))[..., :2],
        lambda m, x: m.second(m.first(x)).softmax(1)[:, :1],
        lambda m, x: F.layer_norm(m.first(x), [5, 8])[:, :1],
        lambda m, x: (y := m.second(m.first(x)))[:, -1:] + y.sum(1, keepdim=True),
        lambda m, x: m.second(m.first(x))[..., 2],  # a feature, which the linear mixes
        lambda m, x: m.second(m.first(x)).softmax(1)[:, 0],  # over the rows
        lambda m, x: F.layer_norm(m.first(x), [5, 8])[:, 0],  # normalized over them
        lambda m, x: (y := m.second(m.first(x)))[:, 0] + y.sum(1),  # all rows are read elsewhere
    ],
    ids=[
        "features",
        "range of softmax",
        "range of norm",
        "readers of range",
        "feature",
        "softmax",
        "norm",
        "readers",
    ],
)
def test_what_reads_all_rows_gets_them(compute: Callable[..., Any]) -> None:
    assert all(shape[0] == 5 for shape in rows(canonical(compute), aten.linear.default))


def test_a_vector_for_weight_takes_an_axis_away() -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.w)[:, 1]

    model, x = Vector().eval(), torch.randn(2, 5, 5, 8)  # two axes of one size: a wrong one would fit
    graph = run(CANONICAL, trace(model, x))
    torch.testing.assert_close(evaluate(graph, [x])[0], model(x))


def test_a_row_of_a_matrix_stays_a_matrix() -> None:
    """Kernels want rows: the batch of a two-dimensional value is not selected away."""
    graph = canonical(lambda m, x: m.second(m.first(x[:, 0]))[0])
    assert rows(graph, aten.linear.default) == [[8], [6]]
    assert all(len(node.meta["val"].shape) == 2 for node in graph.nodes if node.target is aten.linear.default)


def test_behind_the_attention_of_a_last_block_one_token_is_left() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer(8, 2, 16) for _ in range(2))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            seen = torch.ones(x.shape[0], 1, 1, 5, dtype=torch.bool)
            for layer in self.layers:
                x = layer(x, seen)
            logits: Tensor = self.head(x[:, 0])
            return logits

    model = Encoder().eval()
    graph = run(CANONICAL, trace(model, torch.randn(2, 5, 8)))
    wide, narrow = [5, 8], [8]
    first = [wide, wide, wide, wide, [5, 16], wide]
    last = [wide, wide, wide, narrow, [16], narrow, [3]]
    assert rows(graph, aten.linear.default) == first + last
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(evaluate(graph, [x])[0], model(x), rtol=1e-5, atol=1e-6)
