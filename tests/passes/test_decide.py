"""The decisions together: a method is kept only where it measures better; equal data decides equally."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.errors import CalibrationError
from qcompiler.ir import Graph, evaluate, fingerprint, flatten_inputs, format_text, trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import Decision, Judge, decide
from qcompiler.passes.materialize import materialize
from qcompiler.passes.simplify import SIMPLIFY_QDQ
from qcompiler.passes.simulate import expected_sqnr
from qcompiler.recipe import RECIPES, find_recipe
from qcompiler.rewrite import run
from tests.targets import FULL_CODES


class Cnn(nn.Module):
    """Channels of very different range, a residual and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point, self.head = nn.Conv2d(8, 8, 1), nn.Linear(32, 5)
        self.body.weight.data *= torch.logspace(-2, 2, 8).reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        y = y + self.point(self.body(y).relu()).relu()
        result: Tensor = self.head(F.max_pool2d(y, 4).flatten(1))
        return result


class Transformer(nn.Module):
    """One pre-norm layer with outliers in the gains of its norms."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for norm in (self.first, self.second):
            norm.weight.data[::8] = 30.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = x + self.out(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
        result: Tensor = x + self.down(F.gelu(self.up(self.second(x))))
        return result


MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "cnn": (Cnn, (4, 3, 8, 8)), "transformer": (Transformer, (4, 6, 32)),
}  # fmt: skip


@pytest.fixture(scope="module")
def graphs() -> dict[str, tuple[Graph, list[Tensor]]]:
    found = {}
    for name, (model, shape) in MODELS.items():
        torch.manual_seed(0)
        data = [torch.randn(shape) for _ in range(2)]
        found[name] = (run(CANONICAL, trace(model().eval(), data[0])), data)
    return found


Graphs = dict[str, tuple[Graph, list[Tensor]]]


EVERYTHING = {"smooth": 0.5, "equalize": True, "bias_correction": True}


def decided(graphs: Graphs, model: str, recipe: Any) -> Decision:
    graph, data = graphs[model]
    return decide(graph, data, find_recipe(recipe), FULL_CODES)


@pytest.fixture(scope="module")
def thorough(graphs: Graphs) -> dict[str, Decision]:
    """Every method is tried on every model."""
    return {model: decided(graphs, model, EVERYTHING) for model in graphs}


def whole_graph_notes(found: Decision) -> dict[str, tuple[str, float, float]]:
    """Method -> outcome, quality without and with it."""
    notes = [note for note in found.graph.notes if note.node == "whole graph"]
    figures = {note.rule: [float(x) for x in re.findall(r"-?[\d.]+(?= dB)", note.reason)] for note in notes}
    return {note.rule: (note.outcome, figures[note.rule][0], figures[note.rule][1]) for note in notes}


def test_a_method_is_kept_only_if_the_measured_quality_rises(
    graphs: Graphs, thorough: dict[str, Decision]
) -> None:
    for model, found in thorough.items():
        steps = list(whole_graph_notes(found).values())
        reached = [max(before, after) for _, before, after in steps]
        assert [outcome for outcome, *_ in steps] == [
            "applied" if after > before else "refused" for _, before, after in steps
        ]
        assert [before for _, before, _ in steps[1:]] == reached[:-1]  # each starts where the last one ended
        assert Judge.on(*graphs[model]).score(found) == pytest.approx(reached[-1], abs=0.01)


def test_each_method_is_worth_it_somewhere(thorough: dict[str, Decision]) -> None:
    kept = {
        model: {method for method, (outcome, *_) in whole_graph_notes(found).items() if outcome == "applied"}
        for model, found in thorough.items()
    }
    assert "equalize" in kept["cnn"]
    assert "smooth" in kept["transformer"]
    assert any("correct-bias" in methods for methods in kept.values())


def test_a_refused_method_leaves_the_graph_as_it_was(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "score", lambda self, decision: 0.0)  # nothing ever measures better
    for model, (graph, _) in graphs.items():
        found = decided(graphs, model, EVERYTHING)
        assert {outcome for outcome, *_ in whole_graph_notes(found).values()} == {"refused"}
        assert format_text(found.graph) == format_text(graph)
        assert all(found.graph.tensors[name] is tensor for name, tensor in graph.tensors.items())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recipe", [name for name in RECIPES if not name.startswith("fp8-")])  # GPUs' alone
def test_every_recipe_decides_every_kind_of_model(graphs: Graphs, model: str, recipe: str) -> None:
    found = decided(graphs, model, recipe)
    assert Judge.on(*graphs[model]).score(found) > (10 if recipe.startswith(("w4a16", "fp8")) else 20)
    precisions = {layer.precision for layer in found.plan.layers if layer.op == "linear"}
    assert precisions == {
        {"w4a16": "int4", "w4a16-best": "uint4", "fp8": "float8_e4m3fn"}.get(recipe, "int8")
    }


def test_the_same_data_decides_the_same(graphs: Graphs, thorough: dict[str, Decision]) -> None:
    for model, first in thorough.items():
        second = decided(graphs, model, EVERYTHING)
        assert first.plan == second.plan
        quantized = [run((materialize(d.plan), *SIMPLIFY_QDQ), d.graph) for d in (first, second)]
        assert fingerprint(quantized[0]) == fingerprint(quantized[1])


def test_layers_can_be_put_back_to_float_without_new_data(thorough: dict[str, Decision]) -> None:
    found = thorough["cnn"]
    slower = found.keeping_float({"linear": "slower than float"})
    layer = slower.plan.layer("linear")
    assert layer is not None and (layer.precision, layer.why) == ("float", "slower than float")
    assert slower.ranges is found.ranges and len(slower.plan.weights) == len(found.plan.weights) - 1


def test_a_layer_that_goes_back_to_float_has_its_own_bias_and_weight_back() -> None:
    model, data = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval(), [torch.randn(64, 8)]
    graph = run(CANONICAL, trace(model, data[0]))
    recipe = find_recipe({"base": "int8", "smooth": None})
    found = decide(graph, data, recipe, FULL_CODES)
    assert len(found.biases) == 2
    kept = found.keeping_float(dict.fromkeys(found.biases, "slower"))
    torch.testing.assert_close(evaluate(kept.graph, data), evaluate(graph, data), rtol=0, atol=0)


def test_no_data_is_refused_by_every_recipe(graphs: Graphs) -> None:
    for recipe in RECIPES.values():
        with pytest.raises(CalibrationError, match="calibration data is empty"):
            decide(graphs["cnn"][0], [], recipe, FULL_CODES)


def test_the_expected_quality_is_that_of_all_samples_together(
    graphs: Graphs, thorough: dict[str, Decision]
) -> None:
    (_, data), graph, plan = graphs["cnn"], thorough["cnn"].graph, thorough["cnn"].plan
    samples = [flatten_inputs(graph, (x,)) for x in data]
    wanted = [evaluate(graph, sample) for sample in samples]
    quantized = run((materialize(plan), *SIMPLIFY_QDQ), graph)
    old = torch.cat([y for (y,) in wanted]).double()
    new = torch.cat([evaluate(quantized, sample)[0] for sample in samples]).double()
    by_hand = 10 * torch.log10((old**2).sum() / ((old - new) ** 2).sum())
    assert expected_sqnr(graph, plan, samples, wanted) == pytest.approx(float(by_hand))
