"""The blocks of the Hadamard transform from real data.

A compiled graph knows its shapes and no values; a batch that is at hand says more.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.errors import RecipeError
from qcompiler.numerics.hadamard import best_block
from qcompiler.training_recipe import TrainingRecipe, find_training_recipe


def choose_blocks(recipe: str | TrainingRecipe, model: nn.Module, *inputs: Any) -> TrainingRecipe:
    """The recipe with the block of each linear layer that loses least on these inputs, frozen from now on.

    block = argmin MSE(X H) MSE(W H) over the powers of two up to 1024 that divide the features
    (arXiv 2306.11987). The model runs once, op by op and in the mode that it is in.
    """
    found = find_training_recipe(recipe)
    if found.layer is None:
        raise RecipeError(f"the recipe '{found.name}' has no Hadamard blocks", fix="use 'int4-hq'")
    blocks: dict[str, int] = {}

    def watch(name: str, layer: nn.Linear) -> Any:
        def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            blocks.setdefault(f"{name}.weight", best_block(given[0], layer.weight))

        return layer.register_forward_pre_hook(note)

    hooks = [watch(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return replace(found, layer=replace(found.layer, blocks=blocks))
