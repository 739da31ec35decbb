"""Which pointwise ops a kernel absorbs: those that the range of its codes implies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.ir import trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.fuse import Group, fuse
from qcompiler.rewrite import run
from qcompiler.target import ONNX_RUNTIME_CPU


class Rivals(nn.Module):
    """Every function behind a convolution of its own."""

    def __init__(self, *functions: Any) -> None:
        super().__init__()
        self.functions = functions
        self.convs = nn.ModuleList(nn.Conv2d(3, 4, 3) for _ in functions)

    def forward(self, x: Tensor) -> Any:
        return [function(conv(x)) for function, conv in zip(self.functions, self.convs, strict=True)]


def groups(model: nn.Module, x: Tensor) -> list[Group]:
    graph = run(CANONICAL, trace(model.eval(), x))
    return list(fuse(graph, ONNX_RUNTIME_CPU).values())


def absorbed(*functions: Any) -> list[list[str]]:
    """The chain behind each convolution."""
    found = groups(Rivals(*functions), torch.randn(2, 3, 8, 8))
    return [[str(n.target) for n in group.chain] for group in found if "conv" in group.anchor.name]


def test_a_clamp_from_zero_is_absorbed() -> None:
    relu, relu6, ramp, box, hard = absorbed(
        torch.relu,
        F.relu6,
        lambda x: x.clamp(min=0),
        lambda x: x.clamp(0, 1.5),
        lambda x: F.hardtanh(x, 0, 4),
    )
    assert relu == ramp == ["aten.relu.default"]
    assert relu6 == box == hard == ["aten.clamp.default"]


def test_what_no_range_of_codes_implies_is_not_absorbed() -> None:
    clamps = absorbed(
        F.hardtanh, *(lambda x, b=bounds: x.clamp(*b) for bounds in ((-1, 1), (None, 6), (1, 6), (0, 0)))
    )
    others = absorbed(
        torch.sigmoid, F.hardswish, F.gelu, torch.tanh, lambda x: F.leaky_relu(x, 0.1), lambda x: x * 2
    )
    assert not any(clamps + others)


def test_a_chain_of_clamps_is_absorbed_whole() -> None:
    assert absorbed(lambda x: x.relu().clamp(0, 6)) == [["aten.relu.default", "aten.clamp.default"]]


def test_nothing_is_absorbed_where_the_value_before_it_is_read_twice() -> None:
    assert absorbed(lambda x: x.relu() + x, lambda x: (x.relu(), x)) == [[], []]


def test_a_pool_absorbs_nothing() -> None:
    found = groups(Rivals(lambda x: F.max_pool2d(x, 2).relu()), torch.randn(2, 3, 8, 8))
    assert [(str(group.anchor.target), len(group.chain)) for group in found] == [
        ("aten.conv2d.default", 0),
        ("aten.max_pool2d.default", 0),
    ]


def test_groups_stand_in_execution_order_and_end_in_the_last_of_their_chain() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())
    first, second = groups(model, torch.randn(2, 4))
    assert (first.anchor.name, first.result.name) == ("linear", "relu")
    assert second.result is second.anchor
