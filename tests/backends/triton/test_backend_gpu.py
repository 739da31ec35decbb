"""A whole model where it is meant to run: replayed, and against the same model on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qcompiler.api import explain
from qcompiler.backends.triton.engine.backend import Triton
from qcompiler.backends.triton.engine.executable import AtHome
from qcompiler.proof import quantized

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_have_the_bits_of_the_cpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 144), nn.ReLU(), nn.Linear(144, 40)).to(dtype).eval()
    decision = explain(model, torch.randn(32, 80).to(dtype), recipe="int8-dynamic", target="cuda")
    executable = Triton().lower(quantized(decision))
    for rows in (32, 100, 32, 100):
        x = torch.randn(rows, 80).to(dtype)
        found = executable([x.cuda()])[0]
        assert torch.equal(found.cpu(), executable([x])[0])
    assert executable.captures is not None
    assert not executable.captures.refused and len(executable.captures.kept) == 2


def test_calibrated_codes_go_from_one_product_to_the_next() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 144), nn.ReLU(), nn.Linear(144, 40)).eval()
    x = torch.randn(32, 80)
    executable = Triton().lower(quantized(explain(model, x, recipe="int8", target="cuda")))
    assert torch.equal(executable([x.cuda()])[0].cpu(), executable([x])[0])
    home = executable.at_home()
    assert home is not None
    assert [each.kernel for each in home.verify([x])] == ["linear_codes", "int8_linear"]
    assert all(each.max_lsb == 0 for each in home.verify([x]))


def test_every_layer_is_within_its_bound_there() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 144), nn.GELU(), nn.Linear(144, 40)).bfloat16().eval()
    x = torch.randn(64, 80).bfloat16()
    recipes = ["int8-dynamic"]
    if torch.cuda.get_device_capability() == (9, 0):
        recipes.append("fp8-dynamic")
    for recipe in recipes:
        decision = explain(model, x, recipe=recipe, target="cuda")
        home = Triton().lower(quantized(decision)).at_home()
        assert isinstance(home, AtHome)
        for rows in (64, 3):
            assert all(each.max_lsb == 0 for each in home.verify([x[:rows]]))
        assert home.profile([x])["linear"] > 0


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(256, 192), nn.Linear(256, 192), nn.Linear(192, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return y


def test_a_gate_of_few_bits_is_within_its_bound_there() -> None:
    torch.manual_seed(0)
    model, x = Gated().bfloat16().eval(), torch.randn(130, 256).bfloat16()
    home = Triton().lower(quantized(explain(model, x, recipe="w4a16", target="cuda"))).at_home()
    assert home is not None
    for rows in (1, 5, 64, 130):
        found = home.verify([x[:rows]])
        assert [each.kernel for each in found] == ["weight_only_linear gated", "weight_only_linear"]
        assert all(each.max_lsb == 0 for each in found)
