"""Recipes: by name, mapping or file; every mistake is refused with what is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qcompiler.errors import RecipeError
from qcompiler.recipe import RECIPES, Override, Recipe, find_recipe, recipe_to_mapping

CUSTOM = {
    "base": "int8", "name": "mine", "weight_observer": "mse", "observers": ["minmax", "mse"],
    "overrides": [{"pattern": "head", "weights": None}, {"pattern": "block.*", "activations": "int16"}],
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_mapping(name: str) -> None:
    recipe = RECIPES[name]
    assert find_recipe(name) is recipe
    assert find_recipe(recipe_to_mapping(recipe)) == recipe
    assert find_recipe(json.loads(json.dumps(recipe_to_mapping(recipe)))) == recipe


def test_a_mapping_changes_its_base() -> None:
    recipe = find_recipe(CUSTOM)
    assert (recipe.name, recipe.smooth, recipe.weight_observer) == ("mine", RECIPES["int8"].smooth, "mse")
    assert recipe.overrides[0] == Override(pattern="head", changes={"weights": None})
    assert find_recipe(recipe_to_mapping(recipe)) == recipe
    assert find_recipe({"base": "w8a16"}).name == "w8a16-custom"
    assert find_recipe({}) == find_recipe({"base": "int8"})


def test_a_file_is_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "fast.json"
    path.write_text(json.dumps({"base": "w4a16", "group_size": 64}))
    assert find_recipe(path) == find_recipe(str(path))
    assert (find_recipe(path).name, find_recipe(path).group_size) == ("fast", 64)


def test_later_overrides_win_and_any_name_of_a_layer_counts() -> None:
    recipe = find_recipe({
        "overrides": [
            {"pattern": "block.*", "weights": None},
            {"pattern": "block.1", "weights": "int8"},
            {"pattern": "linear_7", "dynamic": True},
        ]
    })  # fmt: skip
    assert recipe.for_layer("block.0", "linear").weights is None
    assert recipe.for_layer("block.1", "linear_1").weights == "int8"
    assert recipe.for_layer("head", "linear_7").dynamic
    assert recipe.for_layer("Block.0").weights == "target"  # names have a case


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    recipe = find_recipe({"overrides": [{"pattern": "head", "weights": None}]})
    recipe.check_patterns([("block", "linear"), ("head", "linear_1")])
    with pytest.raises(RecipeError, match=r"'head' matches no layer.*block"):
        recipe.check_patterns([("block", "linear")])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("int9", r"no recipe 'int9'; use one of int8, int8-mixed, int8-dynamic"),
        ({"base": "fp16"}, r"no recipe 'fp16'"),
        ({"weight": "int8"}, r"has no key 'weight', because its keys are activations"),
        ({"weights": "int99"}, r"int99"),
        ({"observers": ["median"]}, r"unknown observer 'median'; name at least one of minmax"),
        ({"observers": []}, r"unknown observer ''"),
        ({"weight_observer": "kl"}, r"unknown weight observer 'kl'"),
        (
            {"weight_method": "magic"},
            r"unknown weight method 'magic'; use one of nearest, hqq, awq, gptq, best",
        ),
        ({"smooth": 1.5}, r"smooth is 1.5"),
        ({"group_size": -1}, r"group_size is -1"),
        ({"overrides": [{"weights": None}]}, r'an override is .*write \{"pattern"'),
        ({"overrides": [{"pattern": "x", "smooth": 1}]}, r"override 'x' sets the unknown key 'smooth'"),
        (
            "absent.json",
            r"cannot read the recipe 'absent.json', because No such file or directory; check the path",
        ),
    ],
)
def test_a_mistake_is_refused_with_what_is_known(given: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        find_recipe(given)


@pytest.mark.parametrize(("text", "message"), [("{", "cannot read"), ("[1]", "is not a JSON object")])
def test_a_file_that_holds_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        find_recipe(path)


def test_recipes_are_values() -> None:
    assert Recipe(name="a") == Recipe(name="a") != Recipe(name="b")
    assert all(name == recipe.name for name, recipe in RECIPES.items())
