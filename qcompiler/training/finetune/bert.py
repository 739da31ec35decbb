"""A BERT-like encoder that has learned to fill in characters of Python source, fine-tuned to colour it.

before      the characters that were hidden, from those on both sides                         in float
fine-tune   what each character is part of: keyword, name, string, comment, ..., in nats
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.models.bert import Bert
from qcompiler.models.charlm import corpus
from qcompiler.progress import Tell
from qcompiler.training.finetune.before import train_before
from qcompiler.training.finetune.characters import KINDS, labelled
from qcompiler.training.finetune.task import Batch, Task
from qcompiler.training.finetune.text import LENGTH, drawn, validation

VOCABULARY, WIDTH, DEPTH, HEADS = 128, 64, 2, 4
HIDDEN = 0  # the code of a character that is to be found; no source file has it
SHARE = 0.15  # of the characters are hidden, as in arXiv 1810.04805
RATE = 1e-3
BEFORE = 800  # steps
IGNORED = -100
# Labels are dear, and characters are not: few files are coloured.
TUNED_ON = ("argparse", "dataclasses", "difflib", "enum", "random", "shutil", "threading")
HELD_OUT = ("contextlib", "statistics", "textwrap")


class Tagger(nn.Module):
    """A class for each token: [n, T] -> [n, T, classes]."""

    def __init__(self, encoder: Bert, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(tokens, torch.ones_like(tokens)))
        return logits


def small_encoder() -> Bert:
    """Normal weights of deviation 0.05: those of torch's embeddings are twenty times as large."""
    encoder = Bert(
        vocabulary=VOCABULARY, positions=LENGTH, width=WIDTH, depth=DEPTH, heads=HEADS, hidden=4 * WIDTH
    )
    for part in encoder.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.05)
    return encoder


def classes(rows: Tensor) -> Batch:
    """[n, T, 2] -> characters, and what each is part of"""
    return rows[..., 0], rows[..., 1]


def masked(seed: int) -> Callable[[Tensor], Batch]:
    """Characters, of which some are hidden, and what these were."""
    generator = torch.Generator().manual_seed(seed)

    def hide(rows: Tensor) -> Batch:
        hidden = torch.rand(rows.shape, generator=generator) < SHARE
        return rows.masked_fill(hidden, HIDDEN), rows.masked_fill(~hidden, IGNORED)

    return hide


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED)


def bert(batch: int, seed: int, before: int | None, tell: Tell) -> Task:
    steps = BEFORE if before is None else before
    text, held_out = labelled(TUNED_ON), labelled(HELD_OUT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = small_encoder()
        filling = Task(
            name="hidden characters",
            module=Tagger(encoder, WIDTH, VOCABULARY),
            batches=lambda: drawn(corpus().train, batch, LENGTH, seed, masked(seed)),
            loss=cross_entropy,
        )
        train_before(filling, steps=steps, rate=RATE, tell=tell)
        module = Tagger(encoder, WIDTH, len(KINDS))
    return Task(
        name="bert",
        module=module,
        batches=partial(drawn, text, batch, LENGTH, seed + 1, classes),
        loss=cross_entropy,
        validation=validation(held_out, batch, LENGTH, classes),
        start=f"{steps} steps of filling in hidden characters in float, then what each character is part of",
        unit="nats a character",
        gap=0.03,
    )
