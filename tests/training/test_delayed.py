"""Delayed scaling: scales by the steps before, kept from step to step and from run to run."""

import io
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._guards import TracingContext, tracing

import qcompiler as qc
from qcompiler.errors import InputError, RecipeError
from qcompiler.numerics import amax_scale
from qcompiler.numerics.fp8 import cast_fp8, largest
from qcompiler.passes.training.halves import Halves
from qcompiler.passes.training.partition import Cutting
from qcompiler.training.lower import split
from qcompiler.training_recipe import TRAINING_RECIPES, Delayed, Product, TrainingRecipe
from tests.passes.training.steps import Maps, compiled, error, gradients, stepped

WINDOW = 2
HYBRID = TRAINING_RECIPES["fp8-hybrid"]


def recipe(window: int = WINDOW, margin: int = 0) -> TrainingRecipe:
    return TrainingRecipe(
        name="mine", forward=HYBRID.forward, grad_input=HYBRID.grad_input, grad_weight=HYBRID.grad_weight,
        delayed=Delayed(window=window, margin=margin),
    )  # fmt: skip


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40, bias=False), nn.ReLU(), nn.Linear(40, 32, bias=False))


def rows(step: int = 0, count: int = 16) -> Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(step))


def backward(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The result, and the gradients of its sum of squares."""
    model.zero_grad()
    y = model(x)
    torch.autograd.backward(y.square().sum())
    return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


class Reference:
    """The same step written out, with histories as lists of numbers."""

    def __init__(self, margin: int) -> None:
        self.margin = margin
        self.seen: dict[str, list[float]] = {}

    def operand(self, name: str, x: Tensor, format: str) -> tuple[Tensor, Tensor]:
        window = self.seen.setdefault(name, [])[-WINDOW:]
        own = amax_scale(x.abs().max(), largest(format))
        scale = amax_scale(torch.tensor(max(window)), largest(format)) * 2**self.margin if window else own
        self.seen[name].append(float(x.abs().max()))
        return cast_fp8(x / scale, format).float(), scale

    def step(self, x: Tensor, up: Tensor, down: Tensor) -> list[Tensor]:
        (a, s), (b, t) = self.operand("x", x, "e4m3"), self.operand("up", up, "e4m3")
        hidden = (a @ b.t()) * (s * t)
        (c, u), (d, v) = self.operand("hidden", hidden.relu(), "e4m3"), self.operand("down", down, "e4m3")
        y = (c @ d.t()) * (u * v)
        e, w = self.operand("dy", 2 * y, "e5m2")
        f, z = self.operand("dh", (e @ d) * (w * v) * (hidden > 0), "e5m2")
        return [y, (f.t() @ a) * (z * s), (e.t() @ c) * (w * u)]


@pytest.mark.parametrize("margin", [0, 1])
def test_every_step_is_the_reference_to_the_last_bit(margin: int) -> None:
    torch._dynamo.reset()
    model, reference = layers(), Reference(margin)
    qc.compile_training(model, recipe=recipe(margin=margin), memory="keep", verify=False)
    for step, size in enumerate((1.0, 1.0, 8.0, 8.0, 0.5, 0.5, 0.5, 3.0)):
        x = size * rows(step)
        expected = reference.step(x, *(p.detach() for p in model.parameters()))
        assert all(map(torch.equal, backward(model, x), expected)), step
        torch.optim.SGD(model.parameters(), lr=1e-4).step()


@pytest.mark.parametrize(
    "inputs", [(layers, rows), (lambda: Maps().eval(), lambda: torch.randn(2, 3, 16, 16))]
)
def test_on_constant_data_it_is_current_scaling(
    inputs: tuple[Callable[[], nn.Module], Callable[[], Tensor]],
) -> None:
    model, x = inputs[0](), inputs[1]()
    result, expected, _ = stepped(model, x, recipe="fp8-hybrid", memory="keep")
    run, training = compiled(model, recipe="fp8-delayed", memory="keep")
    for _ in range(3):
        found = gradients(model, run, x)
        assert torch.equal(found[0], result)
        assert torch.equal(found[1], expected)
    assert float(training.histories.magnitudes[:, 2].min()) > 0
    assert not training.histories.magnitudes[:, 3:].any()


def test_a_jump_saturates_and_the_next_step_knows_of_it() -> None:
    torch._dynamo.reset()
    model, exact = qc.compile_training(layers(), recipe=recipe(), memory="keep", verify=False), layers()
    errors = []
    for size in (1, 1, 1000, 1000, 1000):
        found, expected = backward(model, size * rows())[0], backward(exact, size * rows())[0]
        assert found.isfinite().all()
        errors.append(error(found, expected))
    assert errors[2] > 0.9
    assert max(errors[:2] + errors[4:]) < 0.1


def test_overflow_is_seen_and_not_remembered() -> None:
    torch._dynamo.reset()
    model = qc.compile_training(layers(), recipe=recipe(), memory="keep", verify=False)
    before = backward(model, rows())
    assert not backward(model, rows() * torch.inf)[0].isfinite().any()
    assert all(map(torch.equal, backward(model, rows()), before))


def test_a_run_that_is_resumed_has_the_numbers_of_one_that_was_not() -> None:
    """With noise, whose step is in the state; whether it is loaded before the first call or after."""

    def begun(weights: Any = None) -> nn.Module:
        torch._dynamo.reset()
        model = layers()
        model.load_state_dict(weights or model.state_dict())
        return qc.compile_training(model, recipe="fp8-delayed", memory="act4", verify=False)

    model = begun()
    names = [*model.state_dict()]
    for step in range(3):
        backward(model, rows(step, 256))
    assert [*model.state_dict()] == names
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "training": qc.training_state(model)}, file)
    expected = backward(model, rows(3, 256))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh, called = begun(saved["model"]), None
    assert not torch.equal(backward(fresh, rows(3, 256))[1], expected[1])
    for called in (False, True):
        if not called:
            fresh = begun(saved["model"])
        qc.load_training_state(fresh, saved["training"])
        assert all(map(torch.equal, backward(fresh, rows(3, 256)), expected)), called


def test_batches_of_another_size_have_the_same_histories() -> None:
    torch._dynamo.reset()
    model = qc.compile_training(layers(), recipe=recipe(), memory="keep", verify=False)
    backward(model, rows())
    names = qc.training_state(model)["histories"].keys()
    assert len(names) == 6
    backward(model, rows(1, 8))
    assert qc.training_state(model)["histories"].keys() == names
    assert all(history.all() for history in qc.training_state(model)["histories"].values())


def test_what_is_computed_again_is_remembered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = Cutting.cut

    def again(cutting: Cutting, _: Collection[str] = ()) -> Halves:
        low = torch.ops.qcompiler.low_bit_mm.default
        return cut(cutting, [node.name for node in cutting.joint.graph.nodes if node.target is low][:1])

    found = []
    for patched in (False, True):
        if patched:
            monkeypatch.setattr(Cutting, "cut", again)
        model = layers()
        run, training = compiled(model, recipe="fp8-delayed", memory="keep")
        gradients(model, run, rows())
        found.append((gradients(model, run, rows(1))[1], training.histories.state()))
    (gradient, histories), (same, others) = found
    assert torch.equal(gradient, same)
    assert histories.keys() == others.keys()
    assert all(torch.equal(histories[name], others[name]) for name in histories)


def test_what_crosses_is_stored_as_with_current_scales() -> None:
    x = rows(0, 256)
    current, delayed = (
        stepped(layers(), x, recipe=each, memory="act4")[2] for each in ("fp8-hybrid", "fp8-delayed")
    )
    assert sorted(current.bits.values()) == sorted(delayed.bits.values())
    assert 4 in delayed.bits.values()


def test_results_that_are_taken_from_a_half_are_unknown_to_what_runs_it() -> None:
    taken: list[Tensor] = []
    with tracing(TracingContext(None)) as context:
        assert context is not None
        context.output_strides = [(2, 1), (1,), ()]  # as Inductor tells them
        run = split(lambda inputs: inputs * 2, 1, taken.extend)
        assert context.output_strides == [(2, 1), (1,)]
    x, magnitude = torch.ones(2), torch.ones(())
    assert run([x, magnitude]) == [x, magnitude, x]
    assert taken == [magnitude]


def test_refusals() -> None:
    with pytest.raises(RecipeError, match="delays the scales of 'int8', because it has more than one"):
        TrainingRecipe(name="mine", forward=Product(left="int8", right="int8"), delayed=Delayed())
    with pytest.raises(RecipeError, match="a window of 0 steps"):
        Delayed(window=0)
    with pytest.raises(InputError, match="no training of this Linear"):
        qc.training_state(nn.Linear(4, 4))
    model = qc.compile_training(layers(), recipe="fp8-delayed")
    state = qc.training_state(model)
    with pytest.raises(InputError, match="this is no state of a training"):
        qc.load_training_state(model, {})
    with pytest.raises(
        InputError, match="of a training with 'int8', and this one is with 'fp8-delayed', because draws"
    ):
        qc.load_training_state(model, {**state, "recipe": "int8"})
    with pytest.raises(
        InputError, match="the history of 'x' is of 2 steps, because the recipe's window is 1024"
    ):
        qc.load_training_state(model, {**state, "histories": {"x": torch.zeros(2)}})
