"""Batches without rows, of an expert that got no tokens, say."""

import pytest
import torch
from torch import nn

from tests.passes.training.steps import stepped


@pytest.mark.parametrize("recipe", ["int8", "fp8-hybrid", "nvfp4", "int4-hq"])
def test_products_without_rows_stay_in_float(recipe: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    result, gradient, piece = stepped(model, torch.randn(0, 8), recipe=recipe, memory="act4", verify=True)
    assert result.shape == (0, 4)
    assert torch.equal(gradient, torch.zeros(sum(parameter.numel() for parameter in model.parameters())))
    whys = {(row.formats, row.why) for row in piece.products}
    assert whys == {("float", "an operand has no elements")}
