import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.models.metrics import Accuracy, Fidelity


@pytest.fixture
def linear() -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(8, 5)


@pytest.fixture
def fidelity(linear: nn.Linear) -> Fidelity:
    generator = torch.Generator().manual_seed(0)
    return Fidelity.to(linear, [(torch.randn(1, 8, generator=generator),) for _ in range(4)])


def test_a_module_is_perfectly_faithful_to_itself(linear: nn.Linear, fidelity: Fidelity) -> None:
    assert fidelity(linear) == {"sqnr_db": math.inf, "top1_agreement": 1.0, "samples": 4}


def test_a_tenth_too_large_is_20_db(linear: nn.Linear, fidelity: Fidelity) -> None:
    figures = fidelity(lambda x: 1.1 * linear(x).double())
    assert figures["sqnr_db"] == pytest.approx(20, abs=1e-6)
    assert figures["top1_agreement"] == 1


def test_the_wrong_sign_is_minus_6_db_and_never_agrees(linear: nn.Linear, fidelity: Fidelity) -> None:
    figures = fidelity(lambda x: -linear(x))
    assert figures["sqnr_db"] == pytest.approx(-20 * math.log10(2))
    assert figures["top1_agreement"] == 0


def test_an_output_that_overflows_is_infinitely_bad(linear: nn.Linear, fidelity: Fidelity) -> None:
    assert fidelity(lambda x: linear(x) + math.inf)["sqnr_db"] == -math.inf


def test_an_output_that_is_no_number_gives_no_figure(linear: nn.Linear, fidelity: Fidelity) -> None:
    assert math.isnan(fidelity(lambda x: linear(x) * math.nan)["sqnr_db"])


@pytest.mark.parametrize(
    "wrap", [lambda y: (y, None), lambda y: [y], lambda y: y.detach().numpy(), lambda y: [y.detach().numpy()]]
)
def test_the_first_output_counts_in_whatever_form(
    linear: nn.Linear, fidelity: Fidelity, wrap: Callable[[Tensor], object]
) -> None:
    assert fidelity(lambda x: wrap(linear(x)))["sqnr_db"] == math.inf


def test_outputs_of_another_shape_are_refused(linear: nn.Linear, fidelity: Fidelity) -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 1\) where the float module gives \(1, 5\)"):
        fidelity(lambda x: linear(x)[:, :1])


def test_fidelity_remembers_the_module_as_it_was(linear: nn.Linear, fidelity: Fidelity) -> None:
    with torch.no_grad():
        linear.weight.mul_(2)
    assert fidelity(linear)["sqnr_db"] < 20


def test_fidelity_counts_samples_not_batches(linear: nn.Linear) -> None:
    fidelity = Fidelity.to(linear, [(torch.randn(3, 8),), (torch.randn(3, 8),)])
    assert fidelity.samples == fidelity(linear)["samples"] == 6


def test_accuracy_is_the_share_of_right_predictions_with_an_odd_last_batch() -> None:
    scores = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0, 1, 2])]
    accuracy = Accuracy(images=scores, labels=torch.tensor([0, 1, 2, 3, 1, 2, 2]), batch=3)
    assert [len(images) for (images,) in accuracy.inputs()] == [3, 3, 1]
    assert accuracy(lambda x: x) == {"accuracy": 5 / 7, "samples": 7}


def test_a_metric_says_what_it_compares_with(fidelity: Fidelity) -> None:
    accuracy = Accuracy(images=torch.zeros(1, 4), labels=torch.zeros(1, dtype=torch.int64))
    assert (accuracy.name, accuracy.kind) == ("accuracy", "labels")
    assert (fidelity.name, fidelity.kind) == ("sqnr_db", "float")
