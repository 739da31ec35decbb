"""What operators need inside, by the table; `benchmarks.joint` compares it with what a process grows by."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from qcompiler.passes.training.scratch import scratch

aten, ops = torch.ops.aten, torch.ops.qcompiler
PLAIN: tuple[Any, ...] = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def needed(function: Callable[..., Any], *inputs: Tensor) -> int:
    """Of the first call in a function's graph."""
    graph = make_fx(function, tracing_mode="fake")(*inputs).graph
    return scratch(next(node for node in graph.nodes if node.op == "call_function"))


@pytest.mark.parametrize(
    ("channels", "size", "expected"),
    [
        ((8, 16), 32, 4 * 16 * 32 * 32),  # two copies of the result outweigh the operands
        ((64, 8), 4, 4 * (64 * 4 * 4 + 64 * 8 * 9)),  # the operands do
    ],
)
def test_a_convolution_needs_copies_in_blocks(channels: tuple[int, int], size: int, expected: int) -> None:
    x, w = torch.randn(1, channels[0], size, size), torch.randn(channels[1], channels[0], 3, 3)
    assert needed(lambda x, w: aten.convolution(x, w, None, *PLAIN), x, w) == expected
    laid = x.to(memory_format=torch.channels_last)
    assert needed(lambda x, w: aten.convolution(x, w, None, *PLAIN), laid, w) == 0


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([True, False, False], 4 * (8 * 16 + 8 * 64 * 9)),  # dy and w; dx is smaller
        ([False, True, False], 4 * (8 * 64 * 9)),  # dw once more
        ([True, True, False], 4 * (8 * 64 * 9)),  # dw is there by then
    ],
)
def test_its_gradients_come_one_after_the_other(wanted: list[bool], expected: int) -> None:
    dy, x, w = torch.randn(1, 8, 4, 4), torch.randn(1, 64, 4, 4), torch.randn(8, 64, 3, 3)

    def gradients(dy: Tensor, x: Tensor, w: Tensor) -> Any:
        return aten.convolution_backward(dy, x, w, [0], *PLAIN, wanted)

    assert needed(gradients, dy, x, w) == expected


def test_what_does_not_lie_in_rows_is_copied() -> None:
    x, key = torch.randn(64, 32), torch.zeros(3, dtype=torch.int64)
    assert needed(lambda x, key: ops.store(x, key, 0, 4), x, key) == 0
    assert needed(lambda x, key: ops.store(x, key, 0, 4), x.t(), key) == x.nbytes
    packed, bounds = ops.store(x, key, 0, 4)
    rows, columns = (
        partial(ops.recall, bits=4, shape=[64, 32], stride=stride, dtype=torch.float32)
        for stride in ([32, 1], [1, 64])
    )
    assert needed(rows, packed, bounds) == 0
    assert needed(columns, packed, bounds) == x.nbytes


def test_what_is_not_in_the_table_needs_nothing() -> None:
    assert needed(torch.relu, torch.randn(8)) == 0
