"""What the user wants: formats and methods, as one printable value with overrides by layer name.

Recipe(name="int8", overrides=(Override(pattern="layer4.*", changes={"activations": None}),))
"""

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from qcompiler.errors import RecipeError
from qcompiler.numerics import CANDIDATES, parse_format

LAYER_KEYS = (
    "weights", "activations", "dynamic", "group_size", "observers", "weight_observer", "weight_method",
)  # fmt: skip
WEIGHT_METHODS = ("nearest", "hqq", "awq", "gptq", "best")


@dataclass(frozen=True, kw_only=True)
class Override:
    """Other settings for the layers whose name matches a shell pattern (`encoder.*.fc1`)."""

    pattern: str
    changes: Mapping[str, Any]

    def __post_init__(self) -> None:
        unknown = [key for key in self.changes if key not in LAYER_KEYS]
        if unknown:
            raise RecipeError(
                f"override '{self.pattern}' sets the unknown key '{unknown[0]}'",
                why=f"a layer has {', '.join(LAYER_KEYS)}",
                fix="correct the key",
            )
        replace(Recipe(name=self.pattern), **dict(self.changes))  # refuses what no recipe may hold


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to quantize a model.

    weights, activations: a format name, "target" for what the target computes fastest, or None for float.
    dynamic: activations of linears get their range at run time; convolutions then stay float.
    dynamic_where_better: so do single linears whose input that serves, by measured error and time.
    group_size: one scale per so many weights along the reduction; 0 is one per output channel. With dynamic
        activations: one per so many numbers of their rows, and per square of as many weights a side.
    observers: candidate ranges, among which the measured error chooses for every tensor.
    weight_observer: "minmax" or "mse", for every scale of a weight.
    weight_method: how weights of linears are rounded: "nearest", "hqq", "awq", "gptq", or "best" of these.
    smooth: SmoothQuant's exponent (arXiv 2211.10438), 0 to search it per norm, None for off.
    equalize: cross-layer equalization (arXiv 1906.04721, section 4.1); bias_correction: section 4.2.
    """

    name: str
    weights: str | None = "target"
    activations: str | None = "target"
    dynamic: bool = False
    dynamic_where_better: bool = False
    group_size: int = 0
    observers: tuple[str, ...] = tuple(CANDIDATES)
    weight_observer: str = "minmax"
    weight_method: str = "nearest"
    smooth: float | None = None
    equalize: bool = False
    bias_correction: bool = False
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self)
        for role in ("weights", "activations"):
            check_format(getattr(self, role), role)
        unknown = [name for name in self.observers if name not in CANDIDATES]
        if unknown or not self.observers:
            raise RecipeError(
                f"unknown observer '{unknown[0] if unknown else ''}'",
                fix=f"name at least one of {', '.join(CANDIDATES)}",
            )
        if self.weight_observer not in ("minmax", "mse"):
            raise RecipeError(
                f"unknown weight observer '{self.weight_observer}'", fix="use 'minmax' or 'mse'"
            )
        if self.weight_method not in WEIGHT_METHODS:
            raise RecipeError(
                f"unknown weight method '{self.weight_method}'", fix=f"use one of {', '.join(WEIGHT_METHODS)}"
            )
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise RecipeError(f"smooth is {self.smooth}", why="it is an exponent between 0 and 1")
        if self.group_size < 0:
            raise RecipeError(f"group_size is {self.group_size}", why="it is a number of weights, or 0")

    def for_layer(self, *names: str) -> "Recipe":
        """The recipe as it holds for one layer, known by any of `names`; later overrides win."""
        layer = self
        for override in self.overrides_of(*names):
            layer = replace(layer, **dict(override.changes))
        return layer

    def overrides_of(self, *names: str) -> tuple[Override, ...]:
        """The overrides that speak of one layer, known by any of `names`."""
        return tuple(
            override
            for override in self.overrides
            if any(fnmatch.fnmatchcase(name, override.pattern) for name in names)
        )

    @property
    def linear_mode(self) -> str:
        """How linears compute: "static", "dynamic", "weight-only" or "float"."""
        if self.weights is None:
            return "float"
        if self.activations is None:
            return "weight-only"
        return "dynamic" if self.dynamic else "static"

    def check_patterns(self, names: Iterable[Sequence[str]]) -> None:
        """Raise RecipeError for an override that matches none of the layers."""
        known = [name for group in names for name in group]
        for override in self.overrides:
            if not fnmatch.filter(known, override.pattern):
                near = ", ".join(dict.fromkeys(name for name in known if name)) or "none"
                raise RecipeError(
                    f"override '{override.pattern}' matches no layer",
                    why=f"the layers are {near[:400]}",
                    fix="correct the pattern, or remove it",
                )

    def overriding(self, pattern: str, **changes: Any) -> "Recipe":
        return replace(self, overrides=(*self.overrides, Override(pattern=pattern, changes=changes)))


# Recipes come from JSON and command lines, so each field says what it may hold, in types and in words.
KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "name": ((str,), "a word"),
    "dynamic": ((bool,), "true or false"),
    "dynamic_where_better": ((bool,), "true or false"),
    "group_size": ((int,), "a number of weights, or 0"),
    "observers": ((tuple,), "a list of names"),
    "weight_observer": ((str,), "'minmax' or 'mse'"),
    "weight_method": ((str,), f"one of {', '.join(WEIGHT_METHODS)}"),
    "smooth": ((int, float, type(None)), "an exponent between 0 and 1, or null"),
    "equalize": ((bool,), "true or false"),
    "bias_correction": ((bool,), "true or false"),
    "overrides": ((tuple,), "a list of overrides"),
}


def check_kinds(recipe: Recipe) -> None:
    for key, (types, words) in KINDS.items():
        value = getattr(recipe, key)
        if type(value) not in types:  # True is no number here
            raise RecipeError(f"{key} is {value!r}", why=f"it is {words}", fix="correct the recipe")


def check_format(name: Any, role: str) -> None:
    if name is None or name == "target":
        return
    if not isinstance(name, str):
        raise RecipeError(f"{role} is {name!r}", why="it is the name of a format, 'target' or None")
    parse_format(name)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="int8", smooth=0.5, bias_correction=True),
        Recipe(name="int8-mixed", smooth=0.5, bias_correction=True, dynamic_where_better=True),
        Recipe(name="int8-dynamic", dynamic=True),
        Recipe(name="w8a16", weights="int8", activations=None),
        Recipe(
            name="w4a16",
            weights="int4",
            activations=None,
            group_size=32,
            weight_observer="mse",
            weight_method="gptq",
        ),
        Recipe(
            name="w4a16-best",
            weights="uint4",
            activations=None,
            group_size=32,
            weight_observer="mse",
            weight_method="best",
        ),
        Recipe(name="fp8", weights="float8_e4m3fn", activations="float8_e4m3fn", observers=("minmax",)),
        Recipe(name="fp8-dynamic", weights="float8_e4m3fn", activations="float8_e4m3fn", dynamic=True),
        Recipe(
            name="fp8-block",
            weights="float8_e4m3fn",
            activations="float8_e4m3fn",
            dynamic=True,
            group_size=128,
        ),
    )
}


def find_recipe(recipe: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """A recipe by name, from a JSON file, from a mapping (`base` names the recipe it changes), or itself."""
    match recipe:
        case Recipe():
            return recipe
        case Mapping():
            return recipe_from_mapping(recipe)
        case str() if recipe in RECIPES:
            return RECIPES[recipe]
        case str() | Path() if Path(recipe).suffix == ".json":
            return recipe_from_file(Path(recipe))
    raise RecipeError(
        f"there is no recipe '{recipe}'",
        fix=f"use one of {', '.join(RECIPES)}, a .json file, or a qcompiler.Recipe",
    )


def recipe_from_file(path: Path) -> Recipe:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise RecipeError(
            f"cannot read the recipe '{path}'", why=error.strerror or str(error), fix="check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(
            f"cannot read the recipe '{path}'", why=str(error), fix="write valid JSON"
        ) from error
    if not isinstance(data, dict):
        raise RecipeError(f"the recipe '{path}' is not a JSON object", fix='write {"base": "int8", ...}')
    return recipe_from_mapping({"name": path.stem, **data})


def recipe_from_mapping(data: Mapping[str, Any]) -> Recipe:
    given = dict(data)
    base = find_recipe(given.pop("base", "int8"))
    known = {field.name for field in fields(Recipe)}
    unknown = [key for key in given if key not in known]
    if unknown:
        raise RecipeError(
            f"a recipe has no key '{unknown[0]}'",
            why=f"its keys are {', '.join(sorted(known))}",
            fix="correct it",
        )
    if isinstance(given.get("overrides"), list | tuple):
        given["overrides"] = tuple(as_override(entry) for entry in given["overrides"])
    if isinstance(given.get("observers"), list):
        given["observers"] = tuple(given["observers"])
    return replace(base, **{"name": f"{base.name}-custom", **given})


def as_override(entry: Any) -> Override:
    if isinstance(entry, Override):
        return entry
    if not isinstance(entry, Mapping) or "pattern" not in entry:
        raise RecipeError(f"an override is {entry!r}", fix='write {"pattern": "layer4.*", "weights": null}')
    changes = dict(entry.get("changes", {k: v for k, v in entry.items() if k != "pattern"}))
    if isinstance(changes.get("observers"), list):
        changes["observers"] = tuple(changes["observers"])
    return Override(pattern=str(entry["pattern"]), changes=changes)


def recipe_to_mapping(recipe: Recipe) -> dict[str, Any]:
    """The inverse of `recipe_from_mapping`, for manifests."""
    plain = {field.name: getattr(recipe, field.name) for field in fields(Recipe)}
    plain["observers"] = list(recipe.observers)
    plain["overrides"] = [{"pattern": o.pattern, **dict(o.changes)} for o in recipe.overrides]
    return plain
