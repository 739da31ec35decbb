"""A small language model of real text: characters of Python's standard library, read where Python runs.

corpus() -> Corpus            ASCII codes of the source files, some of them held out
train(corpus) -> Decoder      LLaMA-style, about a minute on one core
Perplexity(windows)(run)      {"perplexity": exp(mean cross-entropy per character), ...}

Weights are trained when they are asked for and kept nowhere: the text is that of the Python at hand.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.models.bundle import Bundle, Inputs, Run
from qcompiler.models.decoder import Decoder, Growing, Shape
from qcompiler.models.metrics import first_output
from qcompiler.models.statistics import seeded

# Large modules of long standing: they exist in every supported Python and hold prose as well as code.
TRAINED_ON = (
    "_pydecimal", "argparse", "ast", "bdb", "calendar", "cmd", "codecs", "configparser", "copy", "csv",
    "dataclasses", "difflib", "doctest", "enum", "fileinput", "fractions", "ftplib", "functools", "gettext",
    "heapq", "inspect", "ipaddress", "locale", "mailbox", "optparse", "os", "pdb", "pickle", "pickletools",
    "platform", "plistlib", "pydoc", "random", "shutil", "smtplib", "socket", "ssl", "subprocess", "tarfile",
    "tempfile", "threading", "tokenize", "traceback", "turtle", "typing", "uuid", "warnings", "zipapp",
)  # fmt: skip
HELD_OUT = ("bisect", "contextlib", "datetime", "imaplib", "shelve", "statistics", "string", "textwrap")
CONTEXT = 128
# Narrow, so that a minute of training uses the weights up: in a model that is wider than its training needs,
# four bits lose next to nothing, however they are rounded.
SHAPE = Shape(vocabulary=128, width=64, hidden=192, depth=4, heads=4, kv_heads=2, positions=CONTEXT)
CALIBRATION_SEED, TEST_SEED = 200, 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Two texts as ASCII codes (int64, one dimension); no file is in both."""

    train: Tensor
    held_out: Tensor


def corpus(folder: Path | None = None) -> Corpus:
    """Read the source files from `folder` (default: the standard library of this Python)."""
    where = folder or Path(sysconfig.get_paths()["stdlib"])
    return Corpus(train=codes_of(where, TRAINED_ON), held_out=codes_of(where, HELD_OUT))


def codes_of(folder: Path, names: Iterable[str]) -> Tensor:
    """The files one after another; a character outside ASCII becomes "?", an absent file is left out."""
    paths = [path for name in names if (path := folder / f"{name}.py").is_file()]
    if not paths:
        raise FileNotFoundError(f"None of the expected source files is in {folder}.")
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    return torch.frombuffer(bytearray(text.encode("ascii", "replace")), dtype=torch.uint8).long()


def windows(text: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """`count` stretches of `length` characters from random places, [count, length]."""
    starts = torch.randint(len(text) - length, (count, 1), generator=generator)
    return text[starts + torch.arange(length)]


def train(
    text: Tensor,
    *,
    seed: int = 0,
    steps: int = 600,
    batch: int = 16,
    rate: float = 2e-2,
    shape: Shape = SHAPE,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Decoder:
    """Train to predict the next character, with a short warm-up and then a cosine down to nothing.

    Muon trains the matrices of the layers, since AdamW alone needs many more steps here; AdamW the rest.
    """
    with seeded(seed), torch.enable_grad():
        model = Decoder(shape)
        settle(model)
        whole, generator = Growing(model).train(), torch.Generator().manual_seed(seed)
        matrices = [weight for weight in model.layers.parameters() if weight.dim() == 2]
        others = [weight for weight in model.parameters() if all(weight is not other for other in matrices)]
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.1),
        ]
        schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
            for optimizer in optimizers
        ]
        for _ in progress(range(steps)):
            rows = windows(text, batch, shape.positions + 1, generator)
            loss = cross_entropy(whole(rows[:, :-1])[0], rows[:, 1:])
            model.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
    return model.eval().requires_grad_(False)


def settle(model: Decoder) -> None:
    """Normal weights; what writes into the residual stream is smaller, as the stream adds them all up."""
    with torch.no_grad():
        for name, part in model.named_modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                writes = name.endswith(("output", "down"))
                part.weight.normal_(std=0.04 / math.sqrt(2 * model.shape.depth) if writes else 0.04)


def warm_cosine(step: int, steps: int, warm: int = 25) -> float:
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def cross_entropy(logits: Tensor, following: Tensor) -> Tensor:
    """Mean over all characters, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), following.flatten())


@dataclass(frozen=True, kw_only=True, eq=False)
class Perplexity:
    """exp(mean cross-entropy per character) of held-out text [samples, length + 1].

    The figure that decides is its negative logarithm, since of a metric more is better.
    """

    text: Tensor
    batch: int = 16

    name: str = field(default="negative_cross_entropy", init=False)
    kind: str = field(default="labels", init=False)

    @property
    def samples(self) -> int:
        return len(self.text)

    def inputs(self) -> Sequence[Inputs]:
        return [(rows[:, :-1].contiguous(),) for rows in torch.split(self.text, self.batch)]

    @torch.no_grad()
    def __call__(self, run: Run) -> dict[str, float]:
        logits = torch.cat([first_output(run(*inputs)) for inputs in self.inputs()])
        loss = cross_entropy(logits, self.text[:, 1:]).item()
        return {self.name: -loss, "perplexity": math.exp(loss), "samples": self.samples}


def bundle(
    model: Decoder, text: Corpus, *, calibration: int = 16, samples: int = 64, batch: int = 8
) -> Bundle:
    """A trained model with calibration batches of the training text and a test on held-out text."""
    length = model.shape.positions

    def drawn(source: Tensor, count: int, width: int, seed: int) -> Tensor:
        return windows(source, count, width, torch.Generator().manual_seed(seed))

    calibrating = drawn(text.train, calibration * batch, length, CALIBRATION_SEED)
    return Bundle(
        module=Growing(model).eval(),
        example_inputs=(calibrating[:1],),
        calibration=tuple((rows,) for rows in torch.split(calibrating, batch)),
        metric=Perplexity(text=drawn(text.held_out, samples, length + 1, TEST_SEED)),
    )
