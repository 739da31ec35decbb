"""Decoders as models to compile: a prompt into an empty cache, or one step behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qcompiler.models.bundle import Bundle, Inputs
from qcompiler.models.data import zipf_prompts
from qcompiler.models.decoder import Decoder, Pair, Shape
from qcompiler.models.metrics import Fidelity
from qcompiler.models.statistics import (
    CALIBRATION_SEED,
    EXAMPLE_SEED,
    TEST_SAMPLES,
    TEST_SEED,
    seeded,
    settle_transformer,
)

PROMPT, CAPACITY = 128, 256
# A step's sample holds a cache (19 MB at 134 M parameters), so there are fewer than of other models.
CALIBRATION_SAMPLES = 8


def random_decoder(shape: Shape, std: float = 0.02) -> Decoder:
    """A decoder with random weights of the statistics of trained ones."""
    with seeded(0), torch.no_grad():
        module = Decoder(shape)
        settle_transformer(module, std=std)
    return module.eval().requires_grad_(False)


def prompt_bundle(shape: Shape) -> Bundle:
    """Inputs: PROMPT tokens, start 0 and an empty cache."""
    module = random_decoder(shape)
    empty = module.empty_cache(1, CAPACITY)
    start = torch.tensor(0)

    def draw(count: int, seed: int) -> Sequence[Inputs]:
        drawn = zipf_prompts(count, seed, length=PROMPT, vocabulary=shape.vocabulary)
        return [(tokens, start, empty) for tokens in drawn]

    return bundle(module, draw(1, EXAMPLE_SEED)[0], draw)


def step_bundle(shape: Shape) -> Bundle:
    """Inputs: one token, start PROMPT, and the cache that the module itself fills with what came before."""
    module = random_decoder(shape)
    empty = module.empty_cache(1, CAPACITY)
    start = torch.tensor(PROMPT)

    def filled(prompt: Tensor) -> list[Pair]:
        with torch.no_grad():
            _, cache = module(prompt, torch.tensor(0), empty)
        return [(keys.contiguous(), values.contiguous()) for keys, values in cache]

    def steps(count: int, seed: int) -> Iterator[Inputs]:
        for tokens in zipf_prompts(count, seed, length=PROMPT + 1, vocabulary=shape.vocabulary):
            yield tokens[:, PROMPT:], start, filled(tokens[:, :PROMPT])

    def draw(count: int, seed: int) -> Sequence[Inputs]:
        return list(steps(count, seed))

    return bundle(module, draw(1, EXAMPLE_SEED)[0], draw)


def bundle(module: Decoder, example: Inputs, draw: object) -> Bundle:
    assert callable(draw)
    return Bundle(
        module=module,
        example_inputs=example,
        calibration=draw(CALIBRATION_SAMPLES, CALIBRATION_SEED),
        metric=Fidelity.to(module, draw(TEST_SAMPLES, TEST_SEED)),
    )
