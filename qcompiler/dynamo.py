"""The function that stands for "qcompiler" in torch.compile: inference by regions, or training.

options={"recipe": "int8", "calibrate": 8}          regions, called without gradients
options={"recipe": "int8", "memory": "act4"}        training: `memory` says what is kept for backward
"""

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx
from torch._dynamo import config
from torch._guards import CompileContext

from qcompiler.errors import InputError
from qcompiler.recipe import RECIPES
from qcompiler.region import backend as regions
from qcompiler.region.session import OPTIONS as OF_REGIONS
from qcompiler.training import Training
from qcompiler.training.compiled import SESSIONS
from qcompiler.training_recipe import TRAINING_RECIPES

OPTIONS = ("recipe", "memory", "lowering", "verify", "tolerance", "guard", "seed")
TRAININGS: "weakref.WeakValueDictionary[int, Training]" = weakref.WeakValueDictionary()


def backend(
    module: fx.GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile one captured graph; options as those of `Regions`, or of `Training` where they are for that."""
    given = dict(options or {})
    if not is_training(given):
        check_regions(given)
        return regions(module, inputs, options=options)
    unknown = sorted({*given} - {*OPTIONS})
    if unknown:
        raise InputError(
            f"training has no option '{unknown[0]}'",
            why="with `memory`, or with a recipe for training, a model is trained",
            fix=f"use {', '.join(OPTIONS)}",
        )
    # torch.compile keeps one mapping per call of it and so do we: no other lives at that address meanwhile.
    training = TRAININGS.get(id(options))
    if training is None:
        training = Training(**given, options=options)
        TRAININGS[id(options)] = training
        SESSIONS.add(training)
    warn_of_the_last()
    return training(module, inputs)


def warn_of_the_last() -> None:
    """Say when torch will compile a function no more: what comes then is trained in float, unsaid."""
    at, limit = CompileContext.current_compile_id(), config.recompile_limit
    if at is not None and at.frame_compile_id is not None and at.frame_compile_id + 1 >= limit:
        warnings.warn(
            f"torch compiles a function {limit} times, and this is the last: other shapes "
            "may be trained in float; use qcompiler.compile_training, or torch.compile(recompile_limit=...)",
            stacklevel=2,
        )


def check_regions(options: Mapping[str, Any]) -> None:
    """Refuse what regions do not know; whoever meant to train may have mistyped the option that says so."""
    unknown = sorted({*options} - {*OF_REGIONS})
    if unknown:
        is_known = unknown[0] in OPTIONS
        raise InputError(
            f"there is no option '{unknown[0]}'" + " of inference" * is_known,
            why="only `memory`, or a recipe for training, makes torch.compile train" if is_known else "",
            fix=f"use {', '.join(OF_REGIONS)} for inference, and `memory` with "
            f"{', '.join(name for name in OPTIONS if name != 'memory')} to train",
        )


def is_training(options: Mapping[str, Any]) -> bool:
    """Whether options mean training: what is kept for backward, or a recipe that only training has."""
    recipe = options.get("recipe")
    only_training = isinstance(recipe, str) and recipe in TRAINING_RECIPES and recipe not in RECIPES
    return "memory" in options or only_training
