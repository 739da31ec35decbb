"""The two ways to judge a model: against labels, or against its own float outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qcompiler.models.bundle import Inputs, Run


def first_output(outputs: object) -> Tensor:
    """The output that is judged, in float64 on the CPU: the value itself, or the first of a sequence."""
    chosen = outputs[0] if isinstance(outputs, list | tuple) else outputs
    return torch.as_tensor(chosen).detach().to(device="cpu", dtype=torch.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Accuracy:
    """Share of the images whose largest output is at their label. Both tensors have one row per image."""

    images: Tensor
    labels: Tensor
    batch: int = 64

    name: str = field(default="accuracy", init=False)
    kind: str = field(default="labels", init=False)

    @property
    def samples(self) -> int:
        return len(self.labels)

    def inputs(self) -> Sequence[Inputs]:
        return [(images,) for images in torch.split(self.images, self.batch)]

    @torch.no_grad()
    def __call__(self, run: Run) -> dict[str, float]:
        predictions = torch.cat([first_output(run(*batch)).argmax(-1) for batch in self.inputs()])
        return {self.name: (predictions == self.labels).double().mean().item(), "samples": self.samples}


@dataclass(frozen=True, kw_only=True, eq=False)
class Fidelity:
    """How close the first output stays to that of the float module; one expected output per test batch.

    sqnr_db        = 10 log10(sum y^2 / sum (y' - y)^2)       over all samples; inf if equal
    top1_agreement = mean(argmax y' == argmax y)              argmax over the last dimension
    """

    tests: tuple[Inputs, ...]
    expected: tuple[Tensor, ...]

    name: str = field(default="sqnr_db", init=False)
    kind: str = field(default="float", init=False)

    @classmethod
    @torch.no_grad()
    def to(cls, module: nn.Module, tests: Sequence[Inputs]) -> Fidelity:
        """Fidelity to a module as it is now: its outputs are recorded here."""
        return cls(tests=tuple(tests), expected=tuple(first_output(module(*inputs)) for inputs in tests))

    @property
    def samples(self) -> int:
        return sum(len(expected) for expected in self.expected)

    def inputs(self) -> Sequence[Inputs]:
        return self.tests

    @torch.no_grad()
    def __call__(self, run: Run) -> dict[str, float]:
        expected = torch.stack(self.expected)
        actual = torch.stack([first_output(run(*inputs)) for inputs in self.tests])
        if actual.shape != expected.shape:  # subtracting would broadcast, and give a plausible figure
            raise ValueError(
                f"The outputs have shape {tuple(actual.shape[1:])} where the float module gives "
                f"{tuple(expected.shape[1:])}; the first output of `run` must be that of the whole model."
            )
        signal, noise = expected.square().sum(), (actual - expected).square().sum()
        return {
            self.name: 10 * torch.log10(signal / noise).item(),
            "top1_agreement": (actual.argmax(-1) == expected.argmax(-1)).double().mean().item(),
            "samples": self.samples,
        }
