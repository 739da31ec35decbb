"""Overrides of the command line."""

from __future__ import annotations

from typing import Any

import pytest

from qcompiler.cli.recipes import chosen_recipe, parse_override


@pytest.mark.parametrize(
    ("text", "pattern", "changes"),
    [
        ("fc:weights=int8", "fc", {"weights": "int8"}),
        ("layer4.*:activations=float", "layer4.*", {"activations": None}),
        ("*:weights=none, dynamic=true", "*", {"weights": None, "dynamic": True}),
        ("a:b:group_size=32", "a:b", {"group_size": 32}),
        ("fc:observers=minmax+mse", "fc", {"observers": ("minmax", "mse")}),
        ("fc:weights=e4m3,weight_observer=mse", "fc", {"weights": "e4m3", "weight_observer": "mse"}),
    ],
)
def test_an_override_is_read(text: str, pattern: str, changes: dict[str, Any]) -> None:
    found = parse_override(text)
    assert (found.pattern, dict(found.changes)) == (pattern, changes)


def test_later_overrides_win() -> None:
    recipe = chosen_recipe("int8", ["*:weights=float", "fc:weights=int4"])
    assert recipe.name == "int8"
    assert recipe.for_layer("conv").weights is None
    assert recipe.for_layer("fc").weights == "int4"
