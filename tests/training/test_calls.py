"""A model's calls: each model and shape is compiled, and what is not is said."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import config

import qcompiler as qc
from qcompiler.dynamo import backend
from qcompiler.errors import PlanError
from qcompiler.training import calls
from tests.passes.training.steps import gradients

SHAPES = 9  # more than torch compiles of one function


class Broken(nn.Module):
    """In two pieces, each of them a function that all its instances share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        y: Tensor = self.second(x)
        return y


class Disabled(nn.Linear):
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's is not annotated
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.inner = kind(8, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)[0]
        return y


def pieces(model: nn.Module) -> int:
    return len(qc.training_report(model).pieces)


@pytest.mark.parametrize(("make", "each"), [(lambda: nn.Sequential(nn.Linear(4, 4)), 1), (Broken, 2)])
def test_every_model_is_compiled(make: Callable[[], nn.Module], each: int) -> None:
    models = [qc.compile_training(make(), memory="keep", verify=False) for _ in range(SHAPES)]
    for model in models:
        model(torch.randn(2, 4))
    assert [pieces(model) for model in models] == [each] * SHAPES


def test_every_shape_is_compiled_until_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model = qc.compile_training(nn.Linear(4, 4), memory="keep", verify=False)
    for rows in range(2, 2 + SHAPES):
        model(torch.randn(rows, 4))
    assert pieces(model) == SHAPES
    monkeypatch.setattr(calls, "VERSIONS", SHAPES)
    with pytest.raises(PlanError, match="this Linear was compiled 9 times; the next would be float"):
        model(torch.randn(64, 4))
    model(torch.randn(2, 4))
    with torch.no_grad():
        model(torch.randn(64, 4))
    assert pieces(model) == SHAPES


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_train_in_few_bits(kind: Callable[..., nn.Module]) -> None:
    model, x = Recurrent(kind), torch.randn(4, 2, 8)
    _, exact = gradients(model, model, x)
    qc.compile_training(model, recipe="int8", memory="keep", guard=False)
    _, found = gradients(model, model, x)
    (piece,) = qc.training_report(model).pieces
    assert {row.formats for row in piece.products} >= {"int8 x int8"}
    assert 0 < (found - exact).norm() < 0.05 * exact.norm()


def test_a_model_that_torch_does_not_compile_says_so() -> None:
    model = qc.compile_training(Disabled(4, 4))
    with pytest.warns(UserWarning, match="nothing of this Disabled was compiled, so that it trains in float"):
        model(torch.randn(2, 4))


def test_a_distance_that_is_not_met_is_a_plan_error() -> None:
    model = qc.compile_training(nn.Linear(4, 4), recipe="int8", guard=False, tolerance=1e-6)
    with pytest.raises(PlanError, match="from float's, relative, and may be 1e-06"):
        model(torch.randn(2, 4))


def test_torch_compile_says_when_it_stops() -> None:
    model = nn.Linear(4, 4)

    def call(x: Tensor) -> Tensor:  # torch counts by functions, and other tests call other Linears
        y: Tensor = model(x)
        return y

    run = torch.compile(call, backend=backend, options={"memory": "keep", "verify": False}, dynamic=False)
    with config.patch(recompile_limit=2):
        run(torch.randn(2, 4))
        with pytest.warns(UserWarning, match="torch compiles a function 2 times"):
            run(torch.randn(3, 4))
