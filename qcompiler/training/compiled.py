"""Training a model in few bits: the same module, with its forward pass compiled."""

import weakref

import torch
from torch import nn

from qcompiler.errors import InputError
from qcompiler.progress import Tell, silent
from qcompiler.training.calls import compiled
from qcompiler.training.memory import Memory
from qcompiler.training.report import TrainingReport
from qcompiler.training.session import Training
from qcompiler.training_recipe import TrainingRecipe

SESSIONS: "weakref.WeakSet[Training]" = weakref.WeakSet()
LATEST: "weakref.WeakKeyDictionary[nn.Module, Training]" = weakref.WeakKeyDictionary()
"""How a module was told to train last, whether or not it was called since."""


def compile_training(
    model: nn.Module,
    *,
    recipe: str | TrainingRecipe = "float",
    memory: str | Memory = "act4",
    lowering: str = "auto",
    verify: bool = True,
    tolerance: float | None = None,
    guard: bool = True,
    seed: int = 0,
    tell: Tell = silent,
) -> nn.Module:
    """Train a model in few bits: the same module, whose forward pass is compiled from its next call on.

    The loop, the optimizer, autocast, gradient clipping and `state_dict` stay the user's. Each new shape of
    the inputs is compiled anew, since what is stored has to have a known size. Options are those of
    `Training`. Raises InputError for what is no module that torch can capture; RecipeError for an option that
    does not exist; PlanError, in the first call, where the gradients are further from float's than
    `tolerance`, and in a later one where there are too many shapes.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"a {type(model).__name__} cannot be trained in few bits",
            why="torch captures the calls of an nn.Module that is written in Python",
            fix="give the module itself, and not a function or what torch.jit made of it",
        )
    training = Training(
        recipe=recipe,
        memory=memory,
        lowering=lowering,
        verify=verify,
        tolerance=tolerance,
        guard=guard,
        seed=seed,
        tell=tell,
    )
    SESSIONS.add(training)
    LATEST[model] = training
    # As nn.Module.compile does, but through a function of ours: torch does not capture calls that begin in
    # modules of its own, nn.Sequential say.
    model._compiled_call_impl = compiled(model, training)
    return model


def training_report(model: nn.Module) -> TrainingReport:
    """What became of a model that trains in few bits. Raises InputError where nothing is compiled yet."""
    training = find_training(model)
    if not training.pieces:
        raise unknown(model)
    return TrainingReport.of(training)


def find_training(model: nn.Module) -> Training:
    """How a model trains. Raises InputError where it does not, or where only its first call would tell."""
    if model in LATEST:
        return LATEST[model]
    for training in list(SESSIONS):
        if training.trains(model):
            return training
    raise unknown(model)


def unknown(model: nn.Module) -> InputError:
    return InputError(
        f"no training of this {type(model).__name__} has been compiled",
        why="a graph is compiled when the model is first called",
        fix="call it on a batch first",
    )
