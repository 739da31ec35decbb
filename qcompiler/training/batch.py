"""The largest batch of which a training step fits into memory, found without running one.

bytes(b) = parameters + optimizer's state + inputs(b) + peak of a step(b), gradients in it
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError, PlanError
from qcompiler.training.calls import compiled
from qcompiler.training.session import Training

ADAM = 8  # bytes of state for each parameter: two moments in float32


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """The largest batch that fits, and the bytes that a step of it takes at once.

    fixed: parameters and the optimizer's state. step: inputs, and what the step itself allocates at its peak,
    gradients among it. tried: those bytes by batch, of all that were simulated.
    """

    batch: int
    fixed: int
    step: int
    tried: dict[int, int]

    @property
    def bytes(self) -> int:
        return self.fixed + self.step


def find_batch_size(
    model: nn.Module,
    inputs: Any,
    *,
    budget: float,
    recipe: str = "float",
    memory: str = "act4",
    state_bytes: float = ADAM,
    largest: int = 65536,
) -> BatchSize:
    """The largest batch of a model whose step fits into `budget` bytes; nothing is computed to find it.

    inputs: those of one call, a tensor or a sequence of arguments; their first dimension is the batch, of
    whatever size. budget: in bytes. state_bytes: of the
    optimizer, for each parameter. Gradients are taken to be gone before a step, as `zero_grad` leaves them;
    where they are kept from step to step, their bytes are to be added to `state_bytes`. The graphs are those
    that training would run, on tensors without values; the model may not break them. Raises PlanError where
    not even one row fits.
    """
    check_budget(budget)
    arguments = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("the model has no parameters to train", fix="let them require gradients")
    count = sum(parameter.numel() for parameter in parameters)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    fixed = int(weights + state_bytes * count)
    tried: dict[int, int] = {}

    def fits(batch: int) -> bool:
        if batch not in tried:
            tried[batch] = step_bytes(model, arguments, batch, recipe, memory)
        return fixed + tried[batch] <= budget

    if not fits(1):
        raise PlanError(
            f"a step of one row does not fit into {budget:,.0f} bytes",
            why=f"it takes {fixed + tried[1]:,}: parameters and the optimizer's state {fixed:,}, inputs and "
            f"the step itself {tried[1]:,}",
            fix="give it more, or a smaller model",
        )
    low = high = 1
    while low == high < largest:  # until a batch does not fit
        high = min(2 * high, largest)
        low = high if fits(high) else low
    while high - low > 1:
        # Bytes grow nearly evenly with the batch: the line between the two leads to the answer or beside it.
        slope = (tried[high] - tried[low]) / (high - low)
        guess = low + int((budget - fixed - tried[low]) / slope)
        middle = min(max(guess, low + 1), high - 1)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return BatchSize(batch=low, fixed=fixed, step=tried[low], tried=tried)


def check_budget(budget: float) -> None:
    """Raises InputError for what is no number of bytes."""
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 1 <= budget < math.inf:
        raise InputError(
            f"the budget is {budget!r}", why="it is in bytes", fix="give their number: 8_000_000_000 for 8 GB"
        )


def step_bytes(model: nn.Module, inputs: Sequence[Any], batch: int, recipe: str, memory: str) -> int:
    """Inputs and peak of one step of so many rows."""
    with FakeTensorMode() as fake:
        hollow = without_values(model, fake)
        rows = pytree.tree_map(lambda x: with_rows(x, batch) if isinstance(x, Tensor) else x, tuple(inputs))
        training = Training(recipe=recipe, memory=memory, verify=False, guard=False, lowering="eager")
        compiled(hollow, training, fullgraph=True)(*rows)
    held = sum(x.numel() * x.element_size() for x in pytree.tree_leaves(rows) if isinstance(x, Tensor))
    return held + max(piece.after.bytes for piece in training.pieces)


def with_rows(x: Tensor, batch: int) -> Tensor:
    """A tensor of so many rows, which holds nothing where tensors are faked."""
    return torch.empty((batch, *x.shape[1:]), dtype=x.dtype, device=x.device)


def without_values(model: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """A copy of a model whose parameters and buffers hold nothing."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(x): fake.from_tensor(x) for x in tensors}
    return copy.deepcopy(model, memo).train()
