"""What is trained: a module, batches, a loss, and batches that judge it.

loss(module(*inputs), target)        for (inputs, target) in batches
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError
from qcompiler.ir.failure import first_line, user_position

Batch: TypeAlias = "tuple[Any, Any]"
"""The inputs of one call, a tensor or a tuple of arguments, and what the loss compares its result with."""

PAIR = "give (inputs, target), where inputs is a tensor or a tuple of them"


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A training to be run.

    batches: those of one pass through the data; when it ends it is asked again. validation: batches that
    nothing is trained on, () where there are none. start: where the module's weights come from, in words.
    unit: of the loss. gap: how much worse than float's validation may end, where that is known.
    """

    name: str
    module: nn.Module
    batches: Callable[[], Iterable[Batch]]
    loss: Callable[[Any, Any], Tensor]
    validation: Sequence[Batch] = ()
    start: str = ""
    unit: str = ""
    gap: float | None = None


def endless(task: Task) -> Iterator[Batch]:
    """Batch after batch, pass after pass. Raises InputError where a pass is empty, or a batch no pair."""
    while True:
        is_empty = True
        for batch in task.batches():
            is_empty = False
            yield checked(task, batch)
        if is_empty:
            raise InputError(
                f"'{task.name}' gives no batches",
                why="they ended before the first, or at the second pass through them",
                fix="give a list, a DataLoader, or a function that returns a new iterator at each call",
            )


def checked(task: Task, batch: Any) -> Batch:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        count = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise InputError(f"a batch of '{task.name}' is a {type(batch).__name__}{count}", fix=PAIR)
    return batch[0], batch[1]


def loss_of(task: Task, module: nn.Module, batch: Batch) -> Tensor:
    inputs, target = batch
    arguments = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return task.loss(module(*arguments), target)


def unfinite(value: Any) -> str:
    """What of a batch is not finite, in words, or ""."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            counts = {"NaN": int(leaf.isnan().sum()), "infinite numbers": int(leaf.isinf().sum())}
            return " and ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    return ""


def rehearse(task: Task) -> None:
    """Run module and loss once, op by op, on the first batch; InputError says which of them is wrong.

    What fails later is then not the user's code that never ran.
    """
    if not any(parameter.requires_grad for parameter in task.module.parameters()):
        raise InputError(
            f"the module of '{task.name}' has no parameters to train", fix="let them require gradients"
        )
    for origin, batch in (
        ("batch", next(endless(task))),
        *(("validation batch", x) for x in task.validation[:1]),
    ):
        try:
            with torch.no_grad():
                found = loss_of(task, task.module, checked(task, batch))
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"module and loss of '{task.name}' fail on the first {origin}",
                node=user_position(error),
                why=first_line(error),
                fix="the loss is called with the module's result and the batch's target",
            ) from error
        if not isinstance(found, Tensor) or found.numel() != 1:
            what = (
                f"a tensor of {tuple(found.shape)}"
                if isinstance(found, Tensor)
                else f"a {type(found).__name__}"
            )
            raise InputError(f"the loss of '{task.name}' is {what}", fix="return its mean, one number")
