"""What a module in training computes, to the last bit, for the kinds of layer and recipe that there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qcompiler as qc
from qcompiler.backends.reference import Reference
from qcompiler.errors import InputError, RecipeError
from qcompiler.ir import evaluate, fingerprint, format_text, trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import planned
from qcompiler.passes.qat.learned import with_scales
from qcompiler.progress import silent
from qcompiler.proof import quantized
from qcompiler.qat import METHODS, QATModule
from qcompiler.qat.convert import Converted
from qcompiler.rewrite import run


class Residual(nn.Module):
    """What a plan can hold: folded norms, a clamp with an upper bound, a sum of codes, a pool, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4, 3)
        self.norm.register_buffer("running_var", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu6(self.norm(self.stem(x)) * 3)
        x = F.max_pool2d(x + torch.sigmoid(self.inner(x)), 2)
        return {"logits": self.head(x.mean((2, 3)))}


class Gated(nn.Module):
    """Linears, and a constant that is added to codes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.shift = nn.Parameter(torch.randn(32))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.relu(self.first(x)) * torch.relu(self.gate(x)) + self.shift)
        return result


def ready(model: nn.Module, *shape: int, **options: Any) -> tuple[QATModule, Tensor]:
    x = torch.randn(8, *shape)
    return qc.prepare_qat(model.eval(), x, calibration=[x], **options), x


def simulated(converted: Converted, x: Tensor) -> Tensor:
    """The quantized graph in float arithmetic, q and dq by the reference's definitions."""
    (result,) = evaluate(converted.graph, [x])
    assert isinstance(result, Tensor)
    return result


def trained(module: QATModule, x: Tensor, steps: int = 3) -> QATModule:
    """A few steps on noise: everything that can move has moved."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    for step in range(steps):
        result = module(x * (1 + step / 4))
        loss = (result["logits"] if isinstance(result, dict) else result).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


@pytest.mark.parametrize("method", [*METHODS])
def test_a_residual_network_computes_what_it_is_converted_to(method: str) -> None:
    """Before training PTQ's own graph; after it PTQ of the trained model, which takes the module's state."""
    module, x = ready(Residual(), 2, 8, 8, method=method, observe_steps=1)
    check_edges(module, x)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    converted = check_edges(trained(module, x), x)
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert {"stem.weight", "norm.weight", "norm.bias", "inner.weight", "head.weight"} <= moved
    assert not {name for name in moved if name.startswith("norm.running") or "zero_point" in name}

    model = Residual().eval()
    assert not model.load_state_dict(module.state_dict(), strict=False).missing_keys
    found = converted.decision
    ptq = planned(run(CANONICAL, trace(model, x)), [x], found.recipe, found.target, silent)
    assert ptq.plan != found.plan
    same = quantized(replace(ptq, plan=with_scales(ptq.plan, found.learned)))
    assert format_text(converted.graph) == format_text(same)
    assert fingerprint(converted.graph) == fingerprint(same)


def check_edges(module: QATModule, x: Tensor) -> Converted:
    """The module's result is that of the quantized graph in float arithmetic, to the last bit.

    Kernels on integers round an exact sum once where that rounds at every step: a code may differ by one.
    """
    converted = qc.convert_qat(module.eval())
    with torch.no_grad():
        assert torch.equal(module(x)["logits"], simulated(converted, x))
    scales = {value.value: value.scale for value in converted.decision.plan.values}
    on_integers = Reference(converted.decision.target).lower(converted.graph).values([x], set(scales))
    seen: dict[str, Tensor] = {}
    evaluate(converted.graph, [x], observe=lambda node, value: seen.update({node.name: value}))
    edges = {name for name in on_integers if f"{name}_dq" in seen and name != "x"}
    assert len(edges) >= 4
    for name in edges:
        steps = (seen[f"{name}_dq"] - on_integers[name]) / scales[name]
        assert steps.abs().max().round() <= 1, name
    return converted


@pytest.mark.parametrize("recipe", ["int8-dynamic", "w4a16-best", "fp8", {"base": "int8", "weights": "int4"}])
def test_every_recipe_can_be_trained(recipe: Any) -> None:
    module, x = ready(Gated(), 32, recipe=recipe, method="lsq", observe_steps=0)
    converted = qc.convert_qat(trained(module, x))
    with torch.no_grad():
        assert torch.equal(module(x), simulated(converted, x))
    assert any(value.itemsize == 1 for value in converted.graph.tensors.values())


def test_without_training_the_graph_is_that_of_ptq_in_every_byte() -> None:
    model, x = Residual().eval(), torch.randn(4, 2, 8, 8)
    converted = qc.convert_qat(qc.prepare_qat(model, x, calibration=[x]))
    plain = {"smooth": None, "bias_correction": False}
    ptq = quantized(qc.explain(model, x, calibration=[x], recipe=plain))
    assert format_text(converted.graph) == format_text(ptq)
    assert fingerprint(converted.graph) == fingerprint(ptq)


def test_layers_that_go_back_to_float_leave_the_others_their_scales() -> None:
    module, x = ready(Residual(), 2, 8, 8, method="lsq", observe_steps=0)
    decision = qc.convert_qat(trained(module, x)).decision
    inner = next(layer.node for layer in decision.plan.layers if "inner" in layer.label)
    fewer = decision.keeping_float({inner: "a test"}).plan
    kept = {spec.layer: spec.scales for spec in fewer.weights}
    assert inner not in kept
    assert kept == {spec.layer: spec.scales for spec in decision.plan.weights if spec.layer != inner}
    scales = {value.value: value.scale for value in decision.plan.values}
    assert all(value.scale == scales[value.value] for value in fewer.values if value.value in scales)


def test_tied_and_frozen_parameters_stay_so() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
            self.two.weight = self.one.weight
            self.two.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.two(torch.relu(self.one(x)))
            return result

    module, x = ready(Tied(), 8)
    module.train()(x).sum().backward()
    names = {name for name, value in module.named_parameters() if value.grad is not None}
    assert len([name for name in names if "weight" in name]) == 1
    assert "one.bias" in names and "two.bias" not in names


def test_what_cannot_be_trained_is_refused() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(RecipeError, match="there is no method 'dorefa'"):
        qc.prepare_qat(nn.Linear(4, 4).eval(), x, method="dorefa")
    with pytest.raises(RecipeError, match="observe_steps is -1"):
        qc.prepare_qat(nn.Linear(4, 4).eval(), x, observe_steps=-1)
    with pytest.raises(InputError, match="cannot train a str"):
        qc.prepare_qat("model.pt2", x)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="training mode"):
        qc.prepare_qat(nn.Linear(4, 4).train(), x)
    clash = nn.Sequential()
    clash.add_module("convert", nn.Linear(4, 4))
    with pytest.raises(InputError, match=r"cannot have a tensor at 'convert\.weight'"):
        qc.prepare_qat(clash.eval(), x)
