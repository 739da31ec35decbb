"""A training in few bits with float beside it, and all that is known of it as plain values.

task --copy--> float                              \
     --compile_training--> few bits               /   one loop --> losses, what crosses, peaks, times
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import nn

from qcompiler.progress import Tell, silent
from qcompiler.target.machine import this_cpu
from qcompiler.training.compiled import compile_training, find_training
from qcompiler.training.finetune.loop import Learner, Seen, train
from qcompiler.training.finetune.optimizers import find_optimizer, find_plain, make, state_bytes
from qcompiler.training.finetune.task import Task, rehearse
from qcompiler.training.memory import find_memory
from qcompiler.training.report import NOTHING, TrainingReport
from qcompiler.training.session import Piece
from qcompiler.training_recipe import find_training_recipe

FLOAT = "float"
LAST = 0.1  # of the steps, over which the final training loss is the mean


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a task is trained; options of compile_training keep their names."""

    recipe: str = "int8"
    memory: str | float = "act4"
    steps: int = 300
    optimizer: str = "adamw"
    rate: float = 1e-3
    seed: int = 0
    tolerance: float | None = None
    has_float: bool = True
    guard: bool = True

    def __post_init__(self) -> None:
        find_training_recipe(self.recipe)
        find_optimizer(self.optimizer)
        find_memory(self.memory)

    @property
    def name(self) -> str:
        return f"{self.recipe}, {find_memory(self.memory).name}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The module as it ended, trained in few bits, and the data of its report; what was not finite, or ""."""

    module: nn.Module
    data: Mapping[str, Any]
    failure: str = ""


def fine_tune(
    task: Task,
    settings: Settings,
    *,
    tell: Tell = silent,
    watch: Callable[[Seen], None] = lambda seen: None,
    is_over: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a task's module in few bits, and a copy of it in float on the same batches.

    Raises InputError for a task that does not fit together, and PlanError as the first step in few bits does.
    """
    rehearse(task)
    task.module.train()
    plain = copy.deepcopy(task.module) if settings.has_float else None
    compile_training(
        task.module, recipe=settings.recipe, memory=find_memory(settings.memory),
        tolerance=settings.tolerance, seed=settings.seed, guard=settings.guard, tell=tell,
    )  # fmt: skip
    pairs = [(FLOAT, plain, find_plain)] if plain is not None else []
    learners = [
        Learner(
            name, module, make(find(settings.optimizer), module.parameters(), settings.rate), settings.steps
        )
        for name, module, find in [*pairs, (settings.name, task.module, find_optimizer)]
    ]
    torch.manual_seed(settings.seed)  # a loader may shuffle
    why = train(task, learners, steps=settings.steps, seed=settings.seed, watch=watch, is_over=is_over)
    pieces = TrainingReport.of(find_training(task.module)).step
    data = {
        "task": task.name,
        "setting": settings.name,
        "unit": task.unit,
        "steps": settings.steps,
        "done": len(learners[-1].losses),
        "failure": why,
        "start": task.start,
        "learners": {learner.name: of_learner(learner) for learner in learners},
        "gap": gap(learners, task.gap),
        "memory": of_pieces(pieces),
        "graphs": [of_piece(piece) for piece in pieces],
        "manifest": {
            "recipe": settings.recipe, "memory": settings.memory, "optimizer": settings.optimizer,
            "learning rate": settings.rate, "seed": settings.seed, "threads": torch.get_num_threads(),
            "torch": torch.__version__, "cpu": this_cpu().name,
            "parameters": sum(parameter.numel() for parameter in task.module.parameters()),
        },
    }  # fmt: skip
    return Trained(module=task.module, data=data, failure=why)


def of_learner(learner: Learner) -> dict[str, Any]:
    last = learner.losses[-max(1, round(LAST * len(learner.losses))) :]
    return {
        "losses": learner.losses,
        "validation": [[done, mean(losses)] for done, losses in learner.judged],
        "training_loss": mean(last) if last else None,
        "validation_loss": mean(learner.judged[-1][1]) if learner.judged else None,
        # The first step compiles, and warms up what is not compiled.
        "seconds_per_step": median(learner.seconds[1:]) if len(learner.seconds) > 1 else None,
        "steps_timed": len(learner.seconds[1:]),
        "state_bytes": state_bytes(learner.optimizer),
    }


def gap(learners: Sequence[Learner], allowed: float | None) -> dict[str, float | None]:
    """By how much the validation loss is above float's, and the standard error of that over the batches."""
    if len(learners) < 2 or not all(learner.judged for learner in learners):
        return {}
    (_, plain), (_, low) = (learner.judged[-1] for learner in learners)
    apart = [b - a for a, b in zip(plain, low, strict=True)]
    return {
        "mean": mean(apart),
        "error": stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else None,
        "allowed": allowed,
    }


def of_pieces(pieces: Sequence[Piece]) -> dict[str, int]:
    """Bytes of one step: what crosses into backward, a storage once, and the peak of its largest graph."""
    if not pieces:
        return {}
    return {
        "crosses": sum(piece.after.crossing for piece in pieces),
        "crosses_float": sum(piece.before.crossing for piece in pieces),
        "peak": max(piece.after.bytes for piece in pieces),
        "peak_float": max(piece.before.bytes for piece in pieces),
    }


def of_piece(piece: Piece) -> dict[str, Any]:
    values = [(value, piece.bits.get(value.name)) for value in piece.saved if not value.is_held]
    return {
        "values": [
            {
                "name": value.name, "shape": list(value.shape), "bits": bits, "bytes": value.bytes(),
                "stored": value.bytes(bits), "why": "" if bits else value.why,
            }
            for value, bits in values
        ],
        "products": [
            {
                "role": row.role or row.name, "of": piece.names.get(row.parameter, row.parameter),
                "formats": row.formats, "why": row.why,
            }
            for row in piece.products
        ],
        "crosses_float": piece.before.crossing,
        "again": [str(kind) for kind in piece.again],
        "gradient": piece.checked.gradient if piece.checked else None,
        "gradients": [
            {"of": name, "distance": apart.distance if apart.share > NOTHING else None}
            for name, apart in (piece.checked.parameters if piece.checked else {}).items()
        ],
        "unchecked": piece.unchecked,
        "slow": piece.slow,
    }  # fmt: skip
