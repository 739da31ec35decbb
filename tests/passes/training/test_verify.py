"""Every plan is run beside float before it is used, and what is wrong with it is said by name."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.store import store
from qcompiler.training import Training
from tests.passes.training.steps import Block, gradients, stepped

ops = torch.ops.qcompiler


def test_a_good_plan_is_checked_and_its_distances_are_told() -> None:
    torch._dynamo.reset()
    model, x = Block(), torch.randn(4, 16, 64)
    _, _, piece = stepped(model, x, recipe="int8", memory="act4", verify=True)
    assert piece.checked is not None
    assert 0 < piece.checked.results < 0.01
    assert 0 < piece.checked.gradient < 0.24
    assert {name for name in piece.checked.parameters} == dict(model.named_parameters()).keys()


def test_gradients_beyond_the_tolerance_are_refused() -> None:
    with pytest.raises(Exception, match=r"gradients are 0\.\d+ from float's, relative, and may be 0\.001 at"):
        stepped(Block(), torch.randn(4, 16, 64), memory="act4", verify=True, tolerance=0.001)


def test_what_is_not_finite_in_float_says_nothing_of_the_plan() -> None:
    x = torch.randn(4, 16, 64)
    x[0, 0, 0] = float("inf")
    _, _, piece = stepped(Block(), x, memory="act4", verify=True)
    assert piece.checked is None
    assert piece.unchecked == "float's own results or gradients are not finite on this batch"


def calls(half: fx.GraphModule, target: Callable[..., Any]) -> list[fx.Node]:
    return half.graph.find_nodes(op="call_function", target=target)


def wrong_scale(halves: Halves) -> None:
    """Backward takes the bounds of another value of that size."""
    recalls = calls(halves.backward, ops.recall.default)
    first = next(node for node in recalls if node.args[3] == [4, 16, 256])
    other = next(node for node in recalls if node.args[3] == [64, 256])
    first.update_arg(1, other.args[1])


def swapped(halves: Halves) -> None:
    """Two values of one size change places on their way."""
    recalls = calls(halves.backward, ops.recall.default)
    first, second = next((a, b) for a, b in combinations(recalls, 2) if a.args[2:] == b.args[2:])
    first_args, second_args = first.args, second.args
    first.args, second.args = (*second_args[:2], *first_args[2:]), (*first_args[:2], *second_args[2:])


def wrong_stride(halves: Halves) -> None:
    node = next(n for n in calls(halves.backward, ops.recall.default) if n.args[3] == [64, 64])
    node.update_arg(4, [1, 64])


def same_noise(halves: Halves) -> None:
    first, second, *_ = calls(halves.forward, ops.store.default)
    second.update_arg(2, first.args[2])


def clamped(halves: Halves) -> None:
    """The last group of codes is lost."""
    node = calls(halves.backward, ops.recall.default)[0]
    graph = halves.backward.graph
    with graph.inserting_before(node):
        low = graph.call_function(torch.ops.aten.bitwise_and.Scalar, (node.args[0], 0x77))
        low.meta["val"] = node.args[0].meta["val"]  # type: ignore[union-attr]
    node.update_arg(0, low)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (wrong_scale, r"a value does not come back as it was stored at \w+"),
        (swapped, r"a value does not come back as it was stored at \w+"),
        (wrong_stride, r"a value does not come back as it was stored at \w+"),
        (clamped, r"a value does not come back as it was stored at \w+"),
        (same_noise, r"two values draw the same noise, \w+ and at \w+"),
    ],
)
def test_a_planted_fault_is_found_by_name(
    fault: Callable[[Halves], None], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(halves: Halves, *rest: Any) -> None:
        store(halves, *rest)
        fault(halves)
        halves.forward.recompile()
        halves.backward.recompile()

    monkeypatch.setattr("qcompiler.training.session.store", broken)
    torch._dynamo.reset()
    model, x = Block(), torch.randn(4, 16, 64)
    run: Callable[..., Tensor] = torch.compile(model, backend=Training(memory="act4"), dynamic=False)
    with pytest.raises(Exception, match=why):
        gradients(model, run, x)
