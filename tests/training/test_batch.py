"""The largest batch is found on tensors that hold nothing, and is the largest."""

from typing import Any

import pytest
import torch

import qcompiler as qc
from qcompiler.errors import InputError, PlanError
from qcompiler.training.batch import step_bytes
from tests.passes.training.steps import Block


def test_the_batch_found_fits_and_the_next_does_not() -> None:
    model, x = Block(), torch.randn(1, 32, 64)
    found = qc.find_batch_size(model, x, budget=2_000_000, memory="act4")  # a tensor is one argument
    assert found.bytes <= 2_000_000 < found.fixed + found.tried[found.batch + 1]
    assert found.step < step_bytes(model, [x], found.batch, "float", "keep")


def test_bytes_are_those_of_the_graphs_that_train() -> None:
    torch._dynamo.reset()
    model, x = Block(), torch.randn(6, 32, 64)
    qc.compile_training(model, memory="act4", verify=False)
    model(x)
    (piece,) = qc.training_report(model).pieces
    assert step_bytes(Block(), [x], 6, "float", "act4") == piece.after.bytes + x.numel() * 4


def test_what_never_fits_is_refused() -> None:
    with pytest.raises(PlanError, match="a step of one row does not fit into 1,000 bytes, because it takes"):
        qc.find_batch_size(Block(), [torch.randn(1, 32, 64)], budget=1000)


def test_models_that_train_meanwhile_stay_compiled() -> None:
    model, x = Block(), torch.randn(4, 16, 64)
    qc.compile_training(model, memory="keep", verify=False)
    model(x)
    step_bytes(Block(), [x], 1, "float", "keep")
    model(x)
    assert len(qc.training_report(model).pieces) == 1


@pytest.mark.parametrize("budget", ["8GB", 0.5, True, float("inf")])
def test_a_budget_that_is_no_number_of_bytes_is_refused(budget: Any) -> None:
    with pytest.raises(InputError, match=r"the budget is .*, because it is in bytes; give their number"):
        qc.find_batch_size(Block(), torch.randn(1, 32, 64), budget=budget)
