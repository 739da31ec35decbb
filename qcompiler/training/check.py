"""Whether a model can be trained in few bits: one step beside float, and the mean of many for its bias."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qcompiler.errors import InputError
from qcompiler.numerics.bias import Bias, measure_bias
from qcompiler.passes.training.run import apart_from_draws
from qcompiler.progress import Tell, silent
from qcompiler.training.compiled import compile_training, training_report
from qcompiler.training.report import TrainingReport

DRAWS = 24


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainCheck:
    """The report of the model's graphs, and what the mean of `DRAWS` gradients is from float's."""

    report: TrainingReport
    bias: Bias


def train_check(
    model: nn.Module,
    inputs: Sequence[Any],
    *,
    recipe: str = "float",
    memory: str = "act4",
    tolerance: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    tell: Tell = silent,
) -> TrainCheck:
    """Compile a model for training and compare its gradients with float's, on one batch; nothing is trained.

    The gradients are those of random gradients of its results. Raises PlanError as the first step of training
    would, and InputError for a model without parameters to train.
    """
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if not parameters:
        raise InputError("the model has no parameters to train")
    for parameter in parameters:
        parameter.requires_grad_()
    tell("one step in float", 0, 1)
    exact = gradient(model, parameters, inputs, seed)
    compile_training(model, recipe=recipe, memory=memory, tolerance=tolerance, seed=seed, tell=tell)

    def drawn() -> Iterator[Tensor]:
        for draw in range(draws):
            tell("steps in few bits", draw, draws)
            yield gradient(model, parameters, inputs, seed)

    bias = measure_bias(drawn(), exact)  # of one gradient at a time: all of them may not fit into memory
    return TrainCheck(report=training_report(model), bias=bias)


def gradient(
    model: nn.Module, parameters: Sequence[nn.Parameter], inputs: Sequence[Any], seed: int
) -> Tensor:
    """All gradients in one vector; dropout and the gradients of the results are the same in every call."""
    for parameter in parameters:
        parameter.grad = None
    with apart_from_draws(parameters), torch.enable_grad():
        torch.manual_seed(seed)
        results = [
            result
            for result in pytree.tree_leaves(model(*inputs))
            if isinstance(result, Tensor) and result.requires_grad
        ]
        torch.manual_seed(seed)
        torch.autograd.backward(results, [torch.randn_like(result) for result in results])
    return torch.cat(
        [torch.zeros(p.numel()) if p.grad is None else p.grad.detach().flatten().float() for p in parameters]
    )
