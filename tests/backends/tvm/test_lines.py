"""Ops along the last axis beside ops for which it is a line of pixels: every one behind every other."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.tvm import Tvm
from qcompiler.proof import quantized
from tests.backends.tvm.networks import TARGET, equal_to_the_reference
from tests.backends.tvm.sets import pytestmark

__all__ = ["pytestmark"]
CHANNELS, WIDTH = 8, 32


class Attention(nn.Module):
    """Of two heads, of tokens as they are; values of another width than keys where `wide` says so."""

    def __init__(self, wide: int = 1) -> None:
        super().__init__()
        self.wide = wide

    def forward(self, x: Tensor) -> Tensor:
        queries, values = (
            y.view(*y.shape[:-1], 2, -1).transpose(1, 2) for y in (x, torch.cat([x] * self.wide, -1))
        )
        y: Tensor = F.scaled_dot_product_attention(queries, queries, values)
        return y.transpose(1, 2).flatten(2)


class Chain(nn.Module):
    """All ops in an order in which each follows each."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        conv, pool = (nn.Conv1d, nn.MaxPool1d) if flat else (nn.Conv2d, nn.MaxPool2d)
        made: dict[str, Callable[[], nn.Module]] = {
            "conv": lambda: conv(CHANNELS, CHANNELS, 3, padding=1),
            "linear": lambda: nn.Linear(WIDTH, WIDTH),
            "norm": lambda: nn.LayerNorm(WIDTH),
            "pool": lambda: pool(3, 1, 1),
        }
        if flat:
            made["attention"] = Attention
        circle = nx.eulerian_circuit(nx.complete_graph(made, nx.DiGraph()), "conv")
        self.ops = nn.Sequential(*(made[name]() for name, _ in circle))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ops(x)
        return y


def data(flat: bool, count: int, seed: int) -> Tensor:
    lines = () if flat else (3,)
    return torch.randn(count, CHANNELS, *lines, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("flat", [True, False])
def test_every_op_behind_every_other(flat: bool) -> None:
    torch.manual_seed(0)
    kernels = equal_to_the_reference(Chain(flat), lambda count, seed: data(flat, count, seed)).kernels
    assert {"convolution", "maximum"} <= {*kernels.values()}


def test_a_network_without_a_kernel_of_ours() -> None:
    """The pool takes the lines of the linears for pixels, which the kernel of linears does not."""
    torch.manual_seed(0)
    pool = nn.MaxPool1d(2)
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), pool, nn.Linear(WIDTH // 2, 4)).eval()
    x = data(True, 2, 0)
    graph = quantized(explain(network, x, calibration=[x], target=TARGET))
    engine, reference = (backend.lower(graph, threads=1) for backend in (Tvm(TARGET), Reference(TARGET)))
    assert torch.equal(engine([x])[0], reference([x])[0])


@pytest.mark.parametrize("wide", [1, 2])
def test_values_of_another_width_than_keys(wide: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), Attention(wide), nn.Linear(wide * WIDTH, 8))
    equal_to_the_reference(network, lambda count, seed: data(True, count, seed))


def test_fewer_queries_than_keys_see_what_torch_lets_them_see() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            keys = self.linear(x).view(*x.shape[:-1], 2, -1).transpose(1, 2)
            y: Tensor = F.scaled_dot_product_attention(keys[:, :, :5], keys, keys, is_causal=True)
            return y

    torch.manual_seed(0)
    network, x = Causal().eval(), data(True, 2, 0)
    with torch.no_grad():
        wanted = network(x)
    decision = explain(network, x, calibration=[x], target=TARGET)
    assert not any(layer.op == "attention" for layer in decision.plan.layers)
    (result,) = Tvm(TARGET).lower(quantized(decision), threads=1)([x])
    assert float((result - wanted).norm() / wanted.norm()) < 0.05  # with the keys beyond, a third
