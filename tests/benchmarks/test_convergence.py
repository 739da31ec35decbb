"""The page of convergence says of which models its gate tells nothing."""

import pytest
from torch import nn

from benchmarks.convergence import FLOAT, NAIVE, SETTINGS, page, settings_of
from benchmarks.learners import small_resnet
from qcompiler.models.lenet import LeNet


@pytest.mark.parametrize(("figure", "is_said"), [(2.5, False), (2.0, True)])
def test_a_gate_that_everything_passes_is_named(figure: float, is_said: bool) -> None:
    told = page({"learners": {"characters": {FLOAT: [{"figure": 2.0}], NAIVE: [{"figure": figure}]}}})
    assert ("Everything in 2 bits passes" in told) == is_said


@pytest.mark.parametrize(("name", "model"), [("lenet", LeNet()), ("resnet", small_resnet())])
def test_four_bits_are_for_models_with_a_linear_layer_before_the_last(name: str, model: nn.Module) -> None:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert any("int4" in setting for setting in settings_of(name, SETTINGS)) == (len(layers) > 1)
