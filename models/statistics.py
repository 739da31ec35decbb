"""Random weights whose activations have the statistics of trained ones, for want of trained weights.

Freshly initialised networks are too easy to quantize: norms do nothing, and no channel stands out. Here batch
norm has the statistics of structured images, and layer norm a few large channels, as in trained transformers
(LLM.int8(), arXiv 2208.07339, section 4). The figures rank numerics; they are not accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qcompiler.models.bundle import Bundle, Inputs
from qcompiler.models.data import structured_images
from qcompiler.models.metrics import Fidelity

CALIBRATION_SAMPLES = 24
TEST_SAMPLES = 4
# Any fixed and different numbers: what calibrates must not be what is tested.
EXAMPLE_SEED, TEST_SEED, CALIBRATION_SEED, BATCH_NORM_SEED = 1, 100, 200, 3
# Which channels stand out moves the figures by a decibel, so gains do not depend on the order of the weights.
BATCH_NORM_GAIN_SEED, LAYER_NORM_GAIN_SEED = 7, 9
OUTLIER_CHANNELS, OUTLIER_GAIN = 4, 4.0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed on the CPU, and leave the random state outside as it was."""
    # torch.manual_seed would also reset the generators of the accelerators, which are not saved here.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def with_random_weights(
    architecture: Callable[[], nn.Module],
    settle: Callable[[nn.Module], None],
    draw: Callable[[int, int], Sequence[Inputs]],
) -> Bundle:
    """Build an architecture and settle its weights; `draw(count, seed)` gives its inputs."""
    with seeded(0), torch.no_grad():
        module = architecture()
        settle(module)
        module.eval().requires_grad_(False)
        return Bundle(
            module=module,
            example_inputs=draw(1, EXAMPLE_SEED)[0],
            calibration=draw(CALIBRATION_SAMPLES, CALIBRATION_SEED),
            metric=Fidelity.to(module, draw(TEST_SAMPLES, TEST_SEED)),
        )


def settle_convolutional(module: nn.Module) -> None:
    """Normal weights, log-normal batch norm gains, and running statistics measured on structured images."""
    generator = torch.Generator().manual_seed(BATCH_NORM_GAIN_SEED)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm2d):
            part.weight.copy_(log_normal(part.weight.numel(), 0.3, generator))
            part.bias.normal_(std=0.3, generator=generator)
        elif isinstance(part, nn.Linear):
            settle_linear(part, 0.03)
    measure_batch_norm(module)


def measure_batch_norm(module: nn.Module) -> None:
    """Set the running statistics to those of structured images, each batch counting the same."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    module.train()
    for inputs in structured_images(4, BATCH_NORM_SEED, batch=8):
        module(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def settle_transformer(module: nn.Module, std: float) -> None:
    """Normal weights with the given deviation, log-normal layer norm gains, four channels of each raised."""
    generator = torch.Generator().manual_seed(LAYER_NORM_GAIN_SEED)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            settle_linear(part, std)
        elif isinstance(part, nn.Embedding):
            part.weight.normal_(std=std)
        elif isinstance(part, nn.LayerNorm | nn.RMSNorm):
            channels = part.weight.numel()
            part.weight.copy_(log_normal(channels, 0.2, generator))
            part.weight[torch.randperm(channels, generator=generator)[:OUTLIER_CHANNELS]] *= OUTLIER_GAIN
            if isinstance(part, nn.LayerNorm):
                part.bias.normal_(std=0.02)


def settle_linear(linear: nn.Linear, std: float) -> None:
    """Normal weights and bias: a bias of zero would hide one that gets lost."""
    linear.weight.normal_(std=std)
    if linear.bias is not None:
        linear.bias.normal_(std=0.02)


def log_normal(channels: int, spread: float, generator: torch.Generator) -> Tensor:
    """exp(spread * n), n standard normal: gains around 1, as training leaves them."""
    return torch.exp(spread * torch.randn(channels, generator=generator))
