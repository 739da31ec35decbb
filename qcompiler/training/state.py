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
            f"the state was saved of a training with '{state['recipe']}', and this one is with "
            f"'{training.recipe.name}'",
            why="draws and scales of one recipe are not those of another",
            fix=f"compile the model with recipe='{state['recipe']}'",
        )
    training.histories.load(state["histories"])
    training.noise.seed, training.noise.step = int(state["seed"]), int(state["step"])
