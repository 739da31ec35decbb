"""The loop: ordinary torch, over one module or over several side by side.

    for each batch:    loss, backward, clip, step, schedule        of each learner in turn, on the same batch
    every few steps:   the mean loss over the validation batches

All begin with the same weights and draw the same dropout. The rate rises for a tenth of the steps, at most
25, and then falls as a cosine; gradients are clipped to 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter

import torch
from torch import nn

from qcompiler.models.charlm import warm_cosine
from qcompiler.training.finetune.task import Batch, Task, checked, endless, loss_of, unfinite

CLIP = 1.0
VALIDATIONS = 10  # of a whole training, beside that of the weights it starts from

OF_DATA = "and the batch holds"
"""Stands in the words of a failure for which the data is to blame."""

Judged = tuple[int, tuple[float, ...]]
"""After how many steps, and the loss of each validation batch."""


class Learner:
    """A module on its way, with its optimizer, and what has been noted of it."""

    def __init__(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self.name, self.module, self.optimizer = name, module, optimizer
        warm = min(25, steps // 10 + 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_cosine(step, steps, warm)
        )
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.judged: list[Judged] = []


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Where a training is: by learner, the last losses and the last mean over the validation batches."""

    done: int
    steps: int
    losses: dict[str, float]
    validation: dict[str, float] = field(default_factory=dict)


def train(
    task: Task,
    learners: Sequence[Learner],
    *,
    steps: int,
    seed: int = 0,
    watch: Callable[[Seen], None] = lambda seen: None,
    is_over: Callable[[], bool] = lambda: False,
) -> str:
    """Train each learner for so many steps; what was not finite, in words, or "".

    is_over: asked after each step, whether to end. A loss or gradient that is not finite ends it, before the
    weights take it in.
    """
    every = max(1, steps // VALIDATIONS)
    why = judge(task, learners, 0)
    for done, batch in enumerate(islice(endless(task), 0 if why else steps), 1):
        for learner in learners:
            why = why or step(task, learner, batch, seed + done)
        if why:
            break
        is_last = done == steps or is_over()
        if is_last or done % every == 0:
            why = judge(task, learners, done)
        watch(seen(learners, done, steps))
        if why or is_last:
            break
    return why


def step(task: Task, learner: Learner, batch: Batch, seed: int) -> str:
    """One step of one learner; what is not finite, in words, or ""."""
    start = perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = loss_of(task, learner.module, batch)
        learner.optimizer.zero_grad()
        torch.autograd.backward(loss)
    norm = nn.utils.clip_grad_norm_(learner.module.parameters(), CLIP)
    for what, value in (("loss", float(loss.detach())), ("gradient", float(norm))):
        if not math.isfinite(value):
            found = f", {OF_DATA} {held}" if (held := unfinite(batch)) else ""
            return f"the {what} of {learner.name} is {value} at step {len(learner.losses) + 1}{found}"
    learner.optimizer.step()
    learner.schedule.step()
    learner.losses.append(float(loss.detach()))
    learner.seconds.append(perf_counter() - start)
    return ""


def judge(task: Task, learners: Sequence[Learner], done: int) -> str:
    """Note the loss of every learner's weights on each validation batch; what is not finite, or "".

    The weights are judged in float and op by op, as those who load them will use them.
    """
    if not task.validation:
        return ""
    for learner in learners:
        learner.module.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            losses = tuple(
                float(loss_of(task, learner.module, checked(task, batch))) for batch in task.validation
            )
        learner.module.train()
        if not all(map(math.isfinite, losses)):
            return f"the validation loss of {learner.name} is not finite after {done} steps"
        learner.judged.append((done, losses))
    return ""


def seen(learners: Sequence[Learner], done: int, steps: int) -> Seen:
    return Seen(
        done=done,
        steps=steps,
        losses={learner.name: learner.losses[-1] for learner in learners},
        validation={learner.name: mean(learner.judged[-1][1]) for learner in learners if learner.judged},
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
