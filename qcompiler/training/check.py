"""Whether a model can be trained in few bits: one step beside float, and the mean of many for its bias."""

import copy
from collections.abc import Callable, Iterator, Sequence
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
    """Compile a copy of a model for training and compare its gradients with float's, on one batch.

    Parameters that are frozen stay so, unless all are: a model for inference. The gradients are those of
    random gradients of its results. Raises PlanError as the first step of training would, and InputError for
    a model without parameters to train.
    """
    model = copy.deepcopy(model).train()
    parameters = trainable(model)
    tell("one step in float", 0, 1)
    _, exact = results_and_gradient(model, parameters, inputs, seed)
    compile_training(model, recipe=recipe, memory=memory, tolerance=tolerance, seed=seed, tell=tell)

    def drawn() -> Iterator[Tensor]:
        for draw in range(draws):
            tell("steps in few bits", draw, draws)
            yield results_and_gradient(model, parameters, inputs, seed)[1]

    bias = measure_bias(drawn(), exact)  # of one gradient at a time: all of them may not fit into memory
    return TrainCheck(report=training_report(model), bias=bias)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require gradients; where none does, all are made to."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if not parameters:
        raise InputError("the model has no parameters to train")
    if not any(parameter.requires_grad for parameter in parameters):
        for parameter in parameters:
            parameter.requires_grad_()
    return [parameter for parameter in parameters if parameter.requires_grad]


def results_and_gradient(
    run: Callable[..., Any], parameters: Sequence[nn.Parameter], inputs: Sequence[Any], seed: int
) -> tuple[list[Tensor], Tensor]:
    """The results that have gradients, and all gradients in one vector.

    Dropout and the gradients of the results are the same in every call.
    """
    for parameter in parameters:
        parameter.grad = None
    with apart_from_draws(parameters), torch.enable_grad():
        torch.manual_seed(seed)
        results = [
            result
            for result in pytree.tree_leaves(run(*inputs))
            if isinstance(result, Tensor) and result.requires_grad
        ]
        torch.manual_seed(seed + 1)
        torch.autograd.backward(results, [torch.randn_like(result) for result in results])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in parameters]
    return [result.detach() for result in results], torch.cat([g.flatten().float() for g in gradients])
