"""A LLaMA-like decoder that has learned Python's standard library, fine-tuned on one package of it.

The next character, in nats. asyncio is no part of what was read before, and has names and idioms of its own.
"""

import sysconfig
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from qcompiler.models.charlm import codes_of, corpus, cross_entropy, settle
from qcompiler.models.decoder import Decoder, Growing, Shape
from qcompiler.progress import Tell
from qcompiler.training.finetune.before import train_before
from qcompiler.training.finetune.task import Batch, Task
from qcompiler.training.finetune.text import LENGTH, drawn, validation

SHAPE = Shape(vocabulary=128, width=96, hidden=288, depth=2, heads=4, kv_heads=2, positions=LENGTH)
RATE = 4e-3
BEFORE = 400  # steps
TUNED_ON = (
    "base_events", "base_subprocess", "events", "futures", "locks", "proactor_events", "protocols", "queues",
    "selector_events", "sslproto", "subprocess", "tasks", "transports", "unix_events", "windows_events",
)  # fmt: skip
HELD_OUT = ("runners", "streams", "taskgroups", "timeouts")


class Reader(nn.Module):
    """The logits of a decoder alone: tokens [n, T] -> [n, T, vocabulary]."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.whole = Growing(decoder)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.whole(tokens)[0]
        return logits


def following(rows: Tensor) -> Batch:
    """[n, T + 1] -> the first T characters, and the next of each"""
    return rows[:, :-1], rows[:, 1:]


def llama(batch: int, seed: int, before: int | None, tell: Tell) -> Task:
    steps = BEFORE if before is None else before
    folder = Path(sysconfig.get_paths()["stdlib"]) / "asyncio"
    text, held_out = codes_of(folder, TUNED_ON), codes_of(folder, HELD_OUT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(SHAPE)
        settle(decoder)
    reading = Task(
        name="the standard library",
        module=Reader(decoder),
        batches=partial(drawn, corpus().train, batch, LENGTH + 1, seed, following),
        loss=cross_entropy,
    )
    train_before(reading, steps=steps, rate=RATE, tell=tell)
    return Task(
        name="llama",
        module=reading.module,
        batches=partial(drawn, text, batch, LENGTH + 1, seed + 1, following),
        loss=cross_entropy,
        validation=validation(held_out, batch, LENGTH + 1, following),
        start=f"{steps} steps on the standard library in float, then asyncio",
        unit="nats a character",
        gap=0.03,
    )
