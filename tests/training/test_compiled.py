"""The ways in: a module that trains as before, options of torch.compile, and the command."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcompiler as qc
from qcompiler.dynamo import backend
from qcompiler.errors import InputError, RecipeError
from qcompiler.training.memory import find_memory
from tests.passes.training.steps import Block, gradients


def test_a_module_stays_what_it_was() -> None:
    torch._dynamo.reset()
    model = Block()
    names = list(model.state_dict())
    assert qc.compile_training(model, memory="act8") is model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, target = torch.randn(4, 16, 64), torch.zeros(4, 16, 64)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    assert list(model.state_dict()) == names
    told = str(qc.training_report(model))
    assert "memory act8" in told
    assert "up.weight" in told


def test_without_gradients_the_model_is_as_it_was() -> None:
    torch._dynamo.reset()
    model, x = Block(), torch.randn(4, 16, 64)
    expected = model(x).detach()
    qc.compile_training(model, recipe="int8", memory="act4")
    with torch.no_grad():
        assert torch.equal(model(x), expected)


def test_a_broken_graph_is_trained_piece_by_piece() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            torch._dynamo.graph_break()
            y: torch.Tensor = self.second(x)
            return y

    torch._dynamo.reset()
    model, x = Broken(), torch.randn(64, 64)
    _, expected = gradients(model, model, x)
    trained = copy.deepcopy(model)
    qc.compile_training(trained, memory="act8")
    _, found = gradients(trained, trained, x)
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert len(qc.training_report(trained).pieces) == 2


def test_options_of_torch_compile() -> None:
    torch._dynamo.reset()
    model, x = Block(), torch.randn(4, 16, 64)
    run = torch.compile(model, backend=backend, options={"recipe": "int8", "memory": "act4", "guard": False})
    gradients(model, run, x)
    (piece,) = qc.training_report(model).pieces
    assert {row.formats for row in piece.products} == {"int8 x int8", "float"}
    assert set(piece.bits.values()) == {1, 4}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"memory": "act4", "calibrate": 8}, "training has no option 'calibrate'"),
        (
            {"recipe": "int8", "memroy": "act4"},
            "no option 'memroy'; use recipe, .* and `memory` with recipe,",
        ),
        ({"recipe": "int8", "tolerance": 1.0}, "no option 'tolerance' of inference, because only `memory`"),
        ({"memory": "act3"}, "memory is 'act3'; use one of keep, act8, act4, act2"),
        ({"memory": [4]}, r"memory is \[4\]; use one of keep, act8, act4, act2"),
        ({"memory": 4}, "memory is 4, which is so many bytes, .* for 4 bits say 'act4', for a share"),
        ({"memory": "1.5"}, "memory is 1.5, which is so many bytes"),
        ({"memory": "nan"}, "memory is nan; use one of keep"),
        ({"memory": "act4", "recipe": "w4a16"}, "there is no training recipe 'w4a16'"),
        ({"recipe": "fp8-hybrid", "lowering": "c"}, "there is no lowering 'c'"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options: dict[str, Any], why: str) -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match=why):
        torch.compile(nn.Linear(4, 4), backend=backend, options=options)(torch.randn(2, 4))


def test_a_number_in_words_is_that_number() -> None:
    assert find_memory("0.5") == find_memory(0.5)
    assert find_memory("2e9") == find_memory(2_000_000_000)


def test_what_was_not_compiled_has_no_report() -> None:
    with pytest.raises(InputError, match="no training of this Linear has been compiled"):
        qc.training_report(nn.Linear(4, 4))
    with pytest.raises(RecipeError, match="there is no training recipe 'int7'"):
        qc.compile_training(nn.Linear(4, 4), recipe="int7")


def test_a_report_is_of_one_step() -> None:
    """Shapes are alternatives; layers, though they share a function, are not."""

    class Layer(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return super().forward(x).tanh()

    model = nn.Sequential(Layer(64, 64), Layer(64, 32))
    qc.compile_training(model, memory="keep", verify=False)
    model(torch.randn(8, 64))
    report = qc.training_report(model)
    assert len(report.step) == len(report.pieces) >= 2
    kept = report.kept
    model(torch.randn(4, 64))
    report = qc.training_report(model)
    assert len(report.pieces) == 2 * len(report.step)
    assert report.kept == kept
    assert f"{len(report.step)} graphs and {len(report.step)} of other shapes" in str(report)


@pytest.mark.parametrize("what", [lambda x: x, torch.nn.functional.relu, "bert"])
def test_what_is_no_module_is_refused(what: Any) -> None:
    with pytest.raises(InputError, match="cannot be trained in few bits, because torch captures"):
        qc.compile_training(what)


def test_a_module_of_torch_jit_is_refused() -> None:
    scripted = torch.jit.trace(nn.Linear(4, 4), torch.randn(2, 4))  # type: ignore[no-untyped-call]
    with pytest.raises(InputError, match="not a function or what torch"):
        qc.compile_training(scripted)


def test_a_model_without_memory_is_compiled_and_not_checked() -> None:
    with torch.device("meta"):
        model, x = Block(fused=True), torch.randn(4, 16, 64)
    qc.compile_training(model, memory="act4")
    assert model(x).shape == x.shape
    (piece,) = qc.training_report(model).pieces
    assert piece.bits and piece.checked is None
    assert piece.unchecked == "the inputs at hand are stand-ins without values"


def test_float64_crosses_as_it_is_and_says_why() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).double()
    qc.compile_training(model, memory="act4")
    model(torch.randn(64, 64, dtype=torch.float64))
    (piece,) = qc.training_report(model).pieces
    assert "it is float64, and what is stored is at most float32" in {value.why for value in piece.saved}
