"""A LLaMA-style decoder of 134 M parameters: a prompt of 128 tokens, and one token after it."""

from functools import partial

import torch
from torch import nn

from qcompiler.models.bundle import Bundle, Inputs
from qcompiler.models.data import zipf_tokens
from qcompiler.models.decoder import Decoder, Growing, Shape
from qcompiler.models.metrics import Fidelity
from qcompiler.models.statistics import (
    CALIBRATION_SAMPLES,
    CALIBRATION_SEED,
    EXAMPLE_SEED,
    TEST_SAMPLES,
    TEST_SEED,
    settle_transformer,
    with_random_weights,
)

PROMPT = 128
SHAPE = Shape(
    vocabulary=32000, width=768, hidden=2048, depth=12, heads=12, kv_heads=12, positions=1024, epsilon=1e-6
)


def prompts(count: int, seed: int, *, length: int = PROMPT) -> tuple[Inputs, ...]:
    """`count` times (token ids [1, length],)."""
    return tuple((ids,) for ids, _ in zipf_tokens(count, seed, length=length, vocabulary=SHAPE.vocabulary))


def prefill() -> Bundle:
    """tokens [1, 128] -> logits of all positions, and the cache"""
    return with_random_weights(
        lambda: Growing(Decoder(SHAPE)), partial(settle_transformer, std=0.02), prompts
    )  # fmt: skip


@torch.no_grad()
def decode() -> Bundle:
    """token [1, 1], cache of 128 -> its logits, and the cache of 129"""
    module = prefill().module
    return Bundle(
        module=module,
        example_inputs=steps(module, 1, EXAMPLE_SEED)[0],
        calibration=steps(module, CALIBRATION_SAMPLES, CALIBRATION_SEED),
        metric=Fidelity.to(module, steps(module, TEST_SAMPLES, TEST_SEED)),
    )


def steps(module: nn.Module, count: int, seed: int) -> tuple[Inputs, ...]:
    """The last token of a prompt, with the cache of all before it."""
    drawn = prompts(count, seed, length=PROMPT + 1)
    return tuple((tokens[:, PROMPT:], module(tokens[:, :PROMPT])[1]) for (tokens,) in drawn)
