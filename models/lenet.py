"""A LeNet-style network for 8x8 handwritten digits, with trained weights.

python -m qcompiler.models.lenet        trains it again and writes the checkpoint
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qcompiler.models.bundle import Bundle
from qcompiler.models.data import load_digits
from qcompiler.models.metrics import Accuracy
from qcompiler.models.statistics import CALIBRATION_SAMPLES, seeded

CHECKPOINT = Path(__file__).parent / "checkpoints" / "lenet.safetensors"
CALIBRATION_BATCH = 32


class LeNet(nn.Module):
    """Two blocks of convolution, batch norm, ReLU and pooling, then two linears: [n, 1, 8, 8] -> [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 48, 3, padding=1),
            nn.BatchNorm2d(48),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(48, 96, 3, padding=1),
            nn.BatchNorm2d(96),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(96 * 2 * 2, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(0.25),
            nn.Linear(128, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


def shifted(images: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel both ways, at random; zeros come in at the border."""
    windows = F.pad(images, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)  # [n, 1, 3, 3, 8, 8]
    rows, columns = torch.randint(3, (2, len(images)))
    return windows[torch.arange(len(images)), :, rows, columns]


def train(
    seed: int = 0, epochs: int = 60, progress: Callable[[Iterable[int]], Iterable[int]] = iter
) -> LeNet:
    """Train on the training digits. `progress` wraps the sequence of epochs, as a progress bar does."""
    digits = load_digits()
    with seeded(seed), torch.enable_grad():
        model = LeNet().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in progress(range(epochs)):
            for rows in torch.split(torch.randperm(len(digits.train_labels)), 64):
                logits = model(shifted(digits.train_images[rows]))
                loss = F.cross_entropy(logits, digits.train_labels[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


def load(checkpoint: Path = CHECKPOINT) -> LeNet:
    """The trained network from its checkpoint."""
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"The trained LeNet is missing from {checkpoint}; "
            "`python -m qcompiler.models.lenet` trains it and writes the checkpoint."
        )
    with seeded(0):
        model = LeNet()
    model.load_state_dict(load_file(checkpoint))
    return model.eval().requires_grad_(False)


def lenet() -> Bundle:
    digits = load_digits()
    batches = torch.split(digits.train_images, CALIBRATION_BATCH)[:CALIBRATION_SAMPLES]
    return Bundle(
        module=load(),
        example_inputs=(digits.train_images[:1],),
        calibration=tuple((images,) for images in batches),
        metric=Accuracy(images=digits.test_images, labels=digits.test_labels),
    )


def main() -> None:
    """Train with a progress bar, write the checkpoint, and print the held-out accuracy."""
    from rich.console import Console
    from rich.progress import track

    model = train(progress=lambda epochs: track(epochs, description="Training LeNet"))
    CHECKPOINT.parent.mkdir(exist_ok=True)
    save_file(model.state_dict(), CHECKPOINT)
    figures = lenet().metric(model)
    Console().print(f"{CHECKPOINT.name}: {figures['accuracy']:.2%} of {figures['samples']} held-out digits")


if __name__ == "__main__":
    main()
