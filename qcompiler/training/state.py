"""What a training has beside parameters and optimizer, to be saved with them: its step, and its histories.

    torch.save({"model": model.state_dict(), ..., "training": qc.training_state(model)}, path)
    qc.load_training_state(model, saved["training"])        before or after the first call

With it a run that is resumed draws the noise, and takes the scales, that it would have without the pause.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from qcompiler.errors import InputError
from qcompiler.training.compiled import find_training

KEYS = frozenset({"recipe", "seed", "step", "histories"})


def training_state(model: nn.Module) -> dict[str, Any]:
    """The state of a model that `compile_training` compiles: numbers, names and tensors, nothing to execute.

    Each process has its own. Raises InputError for a model that is not trained.
    """
    training = find_training(model)
    return {
        "recipe": training.recipe.name,
        "seed": training.noise.seed,
        "step": training.noise.step,
        "histories": training.histories.state(),
    }


def load_training_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Go on where another training was. Raises InputError where the state is of another recipe, or none."""
    training = find_training(model)
    if set(state) != KEYS:
        raise InputError("this is no state of a training", fix="give what training_state returned")
    if state["recipe"] != training.recipe.name:
        raise InputError(
            f"the state is of the recipe '{state['recipe']}'",
            why=f"the model is trained with '{training.recipe.name}'",
            fix="compile it with the recipe with which it was saved",
        )
    training.histories.load(state["histories"])
    training.noise.seed, training.noise.step = int(state["seed"]), int(state["step"])
