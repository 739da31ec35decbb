"""MODEL of `qcompiler train`: a built-in training, or `file.py:factory` with its batches and loss."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from qcompiler.cli.source import called, describe_type, fields_of
from qcompiler.errors import InputError
from qcompiler.progress import Tell
from qcompiler.training.finetune.builtin import BUILT_IN
from qcompiler.training.finetune.checkpoint import load_weights
from qcompiler.training.finetune.task import Batch, Task

FIELDS = ("module", "batches", "loss", "validation")
FACTORY = "return (module, batches, loss[, validation]) from the factory"
MEMORY, RATE = "act4", 1e-3  # of a training of the user's


def defaults(name: str) -> tuple[str, float]:
    """Memory and learning rate where nobody says otherwise."""
    row = BUILT_IN.get(name)
    return (row.memory, row.rate) if row else (MEMORY, RATE)


def find_task(
    name: str, *, batch: int | None, seed: int, weights: Path | None, tell: Tell, before: int | None = None
) -> Task:
    """Resolve MODEL; raises InputError that says which part of it is wrong.

    before: steps in float, of a built-in training; None for its own. weights: to begin with, in the place of
    those that a built-in training makes, or the factory.
    """
    check_before(name, before, weights)
    if name in BUILT_IN:
        row = BUILT_IN[name]
        task = row.build(batch or row.batch, seed, 0 if weights else before, tell)
    else:
        task = from_factory(name, batch)
    if weights is None:
        return task
    load_weights(task.module, weights)
    return replace(task, start=f"the weights of {weights.name}")


def check_before(name: str, before: int | None, weights: Path | None) -> None:
    """Refuse steps before where there are none to be taken."""
    if before is not None and (weights is not None or name not in BUILT_IN):
        given = "the weights are given" if weights is not None else "the factory gives the weights"
        raise InputError(f"{before} steps in float before are asked for", why=given, fix="leave --before out")


def from_factory(name: str, batch: int | None) -> Task:
    file, colon, factory = name.rpartition(":")
    if not (colon and file.endswith(".py")):
        raise InputError(
            f"there is no training '{name}'", fix=f"name file.py:factory, or one of {', '.join(BUILT_IN)}"
        )
    origin = f"the factory '{factory}' of '{file}'"
    if batch is not None:
        raise InputError(f"a batch of {batch} is asked for", why=f"{origin} makes its batches itself",
                         fix="leave --batch out")  # fmt: skip
    given = fields_of(called(Path(file), factory), FIELDS)
    module, loss = given["module"], given["loss"]
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{origin} returns no module", why=f"it is {describe_type(module)}, not an nn.Module", fix=FACTORY
        )
    if not callable(loss):
        raise InputError(f"{origin} returns no loss", why=f"it is {describe_type(loss)}", fix=FACTORY)
    batches = repeatable(given["batches"], f"{origin} returns no batches")
    validation = given["validation"]
    judged = () if validation is None else repeatable(validation, f"{origin} returns no validation batches")()
    return Task(name=factory, module=module, batches=batches, loss=loss, validation=tuple(judged))


def repeatable(batches: Any, otherwise: str) -> Callable[[], Iterable[Batch]]:
    """A list, a loader or a generator function, as a function that begins anew."""
    if hasattr(batches, "__iter__") or hasattr(batches, "__getitem__"):
        return lambda: iter(batches)
    if callable(batches):
        return batches  # type: ignore[no-any-return]  # what it returns is looked at, batch by batch
    raise InputError(otherwise, why=f"they are {describe_type(batches)}", fix=FACTORY)
