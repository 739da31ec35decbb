"""Checking a training leaves the model as it was, and trains what would be trained."""

import torch
from torch import nn

from qcompiler.training.check import train_check


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 4))


def test_the_model_is_as_it_was() -> None:
    given, x = model().eval(), torch.randn(16, 8)
    given[0].requires_grad_(False)
    state = {name: value.clone() for name, value in given.state_dict().items()}
    checked = train_check(given, [x], memory="keep", draws=2)
    (piece,) = checked.report.pieces
    assert piece.checked is not None
    assert {name.split(".")[-2] for name in piece.checked.parameters} == {"1", "3"}
    assert all(torch.equal(value, state[name]) for name, value in given.state_dict().items())
    assert [p.requires_grad for p in given.parameters()] == [False, False, True, True, True, True]
    assert not any(module.training for module in given.modules())
    assert all(parameter.grad is None for parameter in given.parameters())
    assert given._compiled_call_impl is None


def test_a_model_that_is_frozen_as_a_whole_is_checked_as_a_whole() -> None:
    given = model().requires_grad_(False)
    (piece,) = train_check(given, [torch.randn(16, 8)], memory="keep", draws=2).report.pieces
    assert piece.checked is not None
    assert len(piece.checked.parameters) == 6
    assert not any(parameter.requires_grad for parameter in given.parameters())
