"""Training on handwritten digits: 8-bit states end where float states do, and a bad map does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from qcompiler.optim import AdamW8bit, SGD8bit
from qcompiler.optim.codes import SIGNED, CodeMap

SEEDS = (0, 1, 2)
GATE = 0.03
"""Nats of validation loss that low bits may cost, as for everything else that trains in few bits."""

Make = Callable[[Iterator[nn.Parameter]], Optimizer]


class LinearMap(AdamW8bit):
    """The second moment on even steps: whatever is below 1/510 of its block's largest becomes 0."""

    moments: ClassVar[Mapping[str, CodeMap]] = {
        "exp_avg": SIGNED,
        "exp_avg_sq": CodeMap(values=tuple(code / 255 for code in range(256))),
    }


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two would wait for one another more than they compute on matrices of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 x 8 in [0, 1], shuffled once."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(images).float()[order] / 16, torch.from_numpy(labels)[order]


def validation_loss(make: Make, seed: int, digits: tuple[Tensor, Tensor]) -> float:
    """Nats on the last 397 images after 10 epochs on the others; all but the last layer has 8-bit states."""
    (x, y), held = (part[:1400] for part in digits), [part[1400:] for part in digits]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer, generator = make(model.parameters()), torch.Generator().manual_seed(seed)
    for _ in range(10):
        for batch in torch.randperm(1400, generator=generator).view(28, 50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        return nn.functional.cross_entropy(model(held[0]), held[1]).item()


def gap(low: Make, full: Make, digits: tuple[Tensor, Tensor]) -> float:
    """How much more loss low bits have, mean over seeds; infinite where a run breaks down."""
    losses = torch.tensor([[validation_loss(make, seed, digits) for make in (low, full)] for seed in SEEDS])
    return (losses[:, 0] - losses[:, 1]).mean().nan_to_num(torch.inf).item()


def made(kind: type[Optimizer], **options: float) -> Make:
    return lambda parameters: kind(parameters, **options)  # type: ignore[arg-type]  # of the class, not its base


def test_adamw_ends_where_float_states_do(digits: tuple[Tensor, Tensor]) -> None:
    assert gap(made(AdamW8bit, lr=3e-3), made(AdamW, lr=3e-3), digits) <= GATE


def test_sgd_ends_where_a_float_buffer_does(digits: tuple[Tensor, Tensor]) -> None:
    options = {"lr": 0.03, "momentum": 0.9}
    assert gap(made(SGD8bit, **options), made(SGD, **options), digits) <= GATE


def test_a_linear_map_of_the_second_moment_fails_the_same_gate(digits: tuple[Tensor, Tensor]) -> None:
    """m / (sqrt(0) + eps): the step of a weight whose second moment was rounded away."""
    assert gap(made(LinearMap, lr=3e-3), made(AdamW, lr=3e-3), digits) > GATE
