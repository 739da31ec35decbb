"""Products that are not faster in few bits stay in float, and all that is told and drawn of them."""

import time
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from qcompiler.passes.training import guard
from qcompiler.passes.training.guard import alone, is_contested, measured, normal, paces
from qcompiler.passes.training.joint import family
from qcompiler.passes.training.products import Choice
from qcompiler.passes.training.speed import MARGIN, Pace, clock_on
from qcompiler.training import Training, TrainingReport
from qcompiler.tune.measure import Timing
from tests.passes.training.steps import Maps, compiled, error, gradients

FAST, SLOW = Pace(floating=0.002, few=0.001), Pace(floating=0.0012, few=0.0015)


class Rows(nn.Module):
    """A linear on 32 rows, and a matrix that comes to its results from the left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 40), nn.Parameter(torch.randn(8, 32))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second @ torch.relu(self.first(x))
        return y


def says(pace_of: Callable[[Choice], Pace], patch: pytest.MonkeyPatch) -> list[Choice]:
    """Let a function say how fast products are; what it was asked."""
    asked: list[Choice] = []

    def made_up(choices: Sequence[Choice], **_: object) -> list[Pace]:
        asked.extend(choices)
        return [pace_of(choice) for choice in choices]

    patch.setattr("qcompiler.training.session.paces", made_up)
    return asked


def trained(model: nn.Module, x: Tensor, **settings: object) -> tuple[Tensor, Training]:
    """Gradients of one step under the guard, and the training."""
    run, training = compiled(model, **{"recipe": "int8", "memory": "keep", "guard": True, **settings})
    return gradients(model, run, x)[1], training


def test_what_is_not_faster_stays_in_float_and_both_times_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    says(lambda choice: FAST if choice.matmul.role == "forward" else SLOW, monkeypatch)
    _, training = trained(Rows(), torch.randn(32, 48))
    (piece,) = training.pieces
    assert {(row.role, row.formats, row.why, row.pace) for row in piece.products} == {
        ("forward", "int8 x int8", "", FAST),
        ("grad-input", "float", "int8 is not faster by 10%", SLOW),
        ("grad-weight", "float", "int8 is not faster by 10%", SLOW),
    }
    told = str(TrainingReport.of(training))
    assert "2, 1" in told
    assert "1.2, 1.5" in told


def test_all_in_float_is_float(monkeypatch: pytest.MonkeyPatch) -> None:
    says(lambda _: SLOW, monkeypatch)
    model, x = Rows(), torch.randn(32, 48)
    _, expected = gradients(model, model, x)
    found, _ = trained(model, x)
    assert torch.equal(found, expected)


def test_noise_is_the_same_whatever_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last weight's gradient is in float or not: that of the first layer, made later, is the same."""
    model, x = Rows(), torch.randn(32, 48)
    few, none = (noisy(pays, model, x, monkeypatch) for pays in (True, False))
    last = model.second.numel()  # the first of the model's parameters
    assert not torch.equal(few[:last], none[:last])
    assert torch.equal(few[last:], none[last:])


def noisy(pays: bool, model: nn.Module, x: Tensor, patch: pytest.MonkeyPatch) -> Tensor:
    """Gradients with noise everywhere, whether or not those of the matrix of 8 rows are in few bits."""

    def pace(choice: Choice) -> Pace:
        last = choice.matmul.role == "grad-weight" and choice.matmul.node.meta["val"].shape[0] == 8
        return SLOW if last and not pays else FAST

    says(pace, patch)
    return trained(model, x, recipe="int8-stochastic", memory="act8")[0]


def test_each_form_alone_is_what_the_graph_would_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linears, gradients on either side, convolutions and their gradients, with draws and without."""
    seen = set()

    def compared(choice: Choice) -> Pace:
        read = choice.matmul.node.all_input_nodes
        floating, few = alone(choice), alone(choice, in_few_bits=True)
        with unset_fake_temporarily():
            inputs = [normal(each.meta["val"]) for each in read]
            exact, found = floating(*inputs), few(*inputs)
            assert (exact.shape, exact.dtype) == (found.shape, found.dtype)
            assert 0 < error(found, exact) < 0.02
        seen.add((choice.matmul.role, family(choice.matmul.node), choice.is_flipped))
        return FAST

    says(compared, monkeypatch)
    trained(Rows(), torch.randn(32, 48), recipe="int8-stochastic")
    trained(Maps().eval(), torch.randn(2, 3, 16, 16))
    roles = ("forward", "grad-input", "grad-weight")
    assert seen == {
        ("grad-input", "mm", True), *((role, kind, False) for role in roles for kind in ("mm", "convolution"))
    }  # fmt: skip


def test_products_of_one_shape_are_timed_once_and_late_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = says(lambda _: FAST, monkeypatch)
    trained(nn.Sequential(*(nn.Linear(32, 32) for _ in range(3))), torch.randn(16, 32))
    timed: list[Choice] = []
    told: list[tuple[str, int, int | None]] = []

    def stand_in(choice: Choice) -> Pace:
        timed.append(choice)
        return FAST

    monkeypatch.setattr(guard, "KNOWN", {})
    monkeypatch.setattr(guard, "measured", stand_in)
    tell = lambda *what: told.append(what)  # noqa: E731
    assert paces(asked, tell=tell) == [FAST] * 8
    assert len(timed) < 8
    assert not told
    monkeypatch.setattr(guard, "KNOWN", {})
    monkeypatch.setattr(guard, "PATIENCE", -1.0)
    paces(asked, tell=tell)
    assert told[0] == ("timing products beside float", 0, len(told))


def test_measuring_leaves_the_users_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Pace] = []

    def really(choice: Choice) -> Pace:
        before = torch.get_rng_state().tolist()
        found.append(measured(choice) if not found else FAST)
        assert torch.get_rng_state().tolist() == before
        return found[-1]

    says(really, monkeypatch)
    trained(Rows(), torch.randn(32, 48))
    assert found[0].floating > 0 < found[0].few


def test_more_rounds_where_the_first_disagree() -> None:
    def timing(*ratios: float) -> Timing:
        return Timing(seconds={"floating": ratios, "few": (1.0,) * len(ratios)})

    assert is_contested(timing(1.0, 1.2, 1.2))
    assert not is_contested(timing(1.2, 1.3))
    assert not is_contested(timing(0.5, 1.0))
    assert not Pace(floating=1.0, few=1.0).pays
    assert Pace(floating=1.001 + MARGIN, few=1.0).pays


def test_recipes_for_their_numerics_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = says(lambda _: SLOW, monkeypatch)
    _, training = trained(Rows(), torch.randn(32, 48), recipe="fp8-e4m3")
    assert not asked
    assert all(row.formats == "e4m3 x e4m3" for row in training.pieces[0].products)


def test_a_symbolic_shape_cannot_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    says(lambda _: FAST, monkeypatch)
    torch._dynamo.reset()
    model, training = nn.Linear(48, 40), Training(recipe="int8", memory="keep", verify=False)
    gradients(model, torch.compile(model, backend=training, dynamic=True), torch.randn(32, 48))
    whys = {row.why for row in training.pieces[0].products}
    assert whys == {"its shape is symbolic and cannot be timed; compile with dynamic=False"}


def test_the_clock_of_a_cpu_is_that_of_one_thread_which_works_alone() -> None:
    """Spinning threads are not counted, and the user's threads come back, whatever happens meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), clock_on(torch.device("cpu")) as clock:
            assert (clock, torch.get_num_threads()) == (time.thread_time, 1)
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
