"""The recipe of a command line: a name or a file, changed by overrides.

"layer4.*:weights=int8,activations=float"  -->  Override("layer4.*", {"weights": "int8", "activations": None})
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qcompiler.errors import RecipeError
from qcompiler.recipe import Override, Recipe, find_recipe

FIX = "write 'PATTERN:key=value[,key=value]', as in 'layer4.*:activations=float'"


def chosen_recipe(name: str, overrides: Sequence[str] | None) -> Recipe:
    """The recipe with the overrides of the command line behind its own."""
    recipe = find_recipe(name)
    return replace(recipe, overrides=(*recipe.overrides, *map(parse_override, overrides or ())))


def parse_override(text: str) -> Override:
    pattern, colon, settings = text.rpartition(":")
    if not colon or not pattern:
        raise RecipeError(f"the override '{text}' has no 'PATTERN:'", fix=FIX)
    changes = {}
    for setting in settings.split(","):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not (key and equals and value):
            raise RecipeError(f"the override '{text}' has '{setting}' where key=value belongs", fix=FIX)
        if key in changes:
            raise RecipeError(f"the override '{text}' sets '{key}' twice", fix="keep one of them")
        changes[key] = parse_value(key, value)
    return Override(pattern=pattern, changes=changes)


def parse_value(key: str, text: str) -> Any:
    """JSON where it is JSON, else a word; `float` is the absence of a format, a+b a list of observers."""
    if key == "observers":
        return tuple(text.split("+"))
    if text.lower() in ("float", "none", "null"):
        return None
    try:
        return json.loads(text.lower())
    except ValueError:
        return text
