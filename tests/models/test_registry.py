from collections.abc import Callable
from pkgutil import resolve_name

import pytest

from qcompiler.models import build, describe, names
from qcompiler.models.registry import MODELS


def test_names_are_the_rows_of_the_table() -> None:
    assert names() == (
        "lenet", "resnet18", "resnet50", "mobilenetv2", "vit_b_32", "bert_base",
        "llama_prefill", "llama_decode", "gpt2",
    )  # fmt: skip


@pytest.mark.parametrize("name", names())
def test_each_row_names_a_builder_and_describes_it_in_one_line(name: str) -> None:
    assert callable(resolve_name(MODELS[name].builder))
    line = str(describe(name))
    assert line.endswith(f"({describe(name).weights} weights)")
    assert "\n" not in line


@pytest.mark.parametrize("lookup", [build, describe])
def test_an_unknown_name_is_refused_with_the_known_ones(lookup: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet19'; choose one of .*resnet18.*gpt2\.$"):
        lookup("resnet19")
