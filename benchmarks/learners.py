"""Small models that are trained on real data, each with its own loop, the same for every recipe.

characters    a LLaMA-style decoder on the source text of Python's standard library, nats a character
lenet         LeNet on handwritten digits, percent of held-out digits that it gets wrong
resnet        two residual stages on the same digits
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.models.charlm import corpus, cross_entropy, settle, windows
from qcompiler.models.data import load_digits
from qcompiler.models.decoder import Decoder, Shape
from qcompiler.models.lenet import LeNet, shifted
from qcompiler.models.resnet import BasicBlock
from qcompiler.training.finetune.llama import Reader

SHAPE = Shape(vocabulary=128, width=64, hidden=192, depth=2, heads=4, kv_heads=2, positions=64)
BATCH = 16
Prepare = Callable[[nn.Module], nn.Module]
"""Gives a fresh model, to be trained as a recipe says."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: its loss at every step, and the figure that counts on what it has not seen."""

    losses: tuple[float, ...]
    figure: float


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A training by seed; `unit` of its figure, of which less is better, and the `gap` that is allowed.

    hidden: whether a linear layer is not the last, which is what recipes of 4 bits are for.
    """

    unit: str
    gap: float
    train: Callable[[Prepare, int, int], Run]
    steps: int
    hidden: bool = True


def characters(prepare: Prepare, seed: int, steps: int) -> Run:
    """AdamW with a cosine, gradients clipped to 1."""
    torch.manual_seed(seed)
    text = corpus()
    plain = Decoder(SHAPE)
    settle(plain)
    reader = Reader(plain)
    model = prepare(reader.train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    draws = torch.Generator().manual_seed(seed)

    def losses() -> Iterable[Tensor]:
        for _ in range(steps):
            rows = windows(text.train, BATCH, SHAPE.positions + 1, draws)
            yield cross_entropy(model(rows[:, :-1]), rows[:, 1:])

    found = descend(losses(), model, optimizer, steps)
    rows = windows(text.held_out, 128, SHAPE.positions + 1, torch.Generator().manual_seed(1000))
    with torch.no_grad():
        figure = float(cross_entropy(reader.eval()(rows[:, :-1]), rows[:, 1:]))
    return Run(losses=found, figure=figure)


def digits(make: Callable[[], nn.Module]) -> Callable[[Prepare, int, int], Run]:
    """Handwritten digits, moved by a pixel at random; AdamW with a cosine."""

    def train(prepare: Prepare, seed: int, steps: int) -> Run:
        torch.manual_seed(seed)
        data = load_digits()
        plain = make().train()
        model = prepare(plain)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
        draws = torch.Generator().manual_seed(seed)

        def losses() -> Iterable[Tensor]:
            for _ in range(steps):
                rows = torch.randint(len(data.train_labels), (64,), generator=draws)
                logits = model(shifted(data.train_images[rows]))
                yield F.cross_entropy(logits, data.train_labels[rows], label_smoothing=0.05)

        found = descend(losses(), model, optimizer, steps)
        plain.eval()
        with torch.no_grad():
            wrong = plain(data.test_images).argmax(-1) != data.test_labels
        return Run(losses=found, figure=100 * float(wrong.float().mean()))

    return train


def descend(
    losses: Iterable[Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> tuple[float, ...]:
    """Follow the gradients of losses to the end."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    found = []
    for loss in losses:
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        found.append(float(loss.detach()))
    return tuple(found)


def small_resnet() -> nn.Module:
    """[n, 1, 8, 8] -> [n, 10]"""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        BasicBlock(32, 32, 1), BasicBlock(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


LEARNERS: Mapping[str, Learner] = {
    "characters": Learner(unit="nats", gap=0.03, train=characters, steps=300),
    "lenet": Learner(unit="% wrong", gap=1.0, train=digits(LeNet), steps=400),
    "resnet": Learner(unit="% wrong", gap=1.0, train=digits(small_resnet), steps=300, hidden=False),
}
