"""Rounding with care: each algorithm's property, and that no layer is worse for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError, PlanError
from qcompiler.ir import Graph, arguments, evaluate, trace
from qcompiler.numerics import PerGroup, dequantize, parse_format, quantize, sqnr
from qcompiler.passes.abreast import Moments
from qcompiler.passes.awq import EXPONENTS, best_factor, normalised, rounding_error, scale_channels
from qcompiler.passes.bias import correct_bias
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import Decision, Judge, decide, planned
from qcompiler.passes.gptq import compensated
from qcompiler.passes.grid import read_grid, short, shortened
from qcompiler.passes.hqq import half_quadratic, loss
from qcompiler.passes.materialize import materialize
from qcompiler.passes.round_weights import CANDIDATES, METHODS, round_weights, rounded
from qcompiler.passes.simplify import SIMPLIFY_QDQ
from qcompiler.passes.weights import weight_params
from qcompiler.plan import WeightSpec, plan_from_json, plan_to_json
from qcompiler.progress import silent
from qcompiler.recipe import WEIGHT_METHODS, find_recipe
from qcompiler.rewrite import run
from qcompiler.target import ONNX_RUNTIME_CPU
from tests.targets import FULL_CODES

CASES = [("int4", 0), ("int4", 16), ("uint4", 16), ("int8", 0), ("int2", 16)]
cases = pytest.mark.parametrize(("format", "group"), CASES)


def planned_weight(format: str = "int4", group: int = 16, observer: str = "mse") -> WeightSpec:
    return WeightSpec(
        layer="layer", argument="weight", format=format, axis=0, group_size=group, observer=observer,
        method="best",
    )  # fmt: skip


def layer(rows: int = 24, width: int = 64, samples: int = 400) -> tuple[Tensor, Tensor]:
    """A weight with heavy tails, and inputs whose channels are correlated and of unequal power."""
    x = torch.randn(samples, 12) @ torch.randn(12, width) + 0.3 * torch.randn(samples, width)
    return torch.distributions.StudentT(4.0).sample((rows, width)) * 0.05, x * torch.logspace(-1, 1, width)


def output_error(weight: Tensor, rounded: Tensor, x: Tensor) -> float:
    return float((((weight - rounded).double() @ x.double().t()) ** 2).sum())


# ---------------------------------------------------------------- grids


@cases
def test_what_is_on_a_grid_is_reproduced_bit_for_bit(format: str, group: int) -> None:
    """D(Q(W)) = W for scales read from W, whichever codes of the format occur in a group."""
    weight, _ = layer()
    spec = planned_weight(format, group, "minmax")
    for thinned in (1, 2, 7):  # every group; then groups in which only few codes are left
        params = shortened(weight_params(weight, spec))
        codes = quantize(weight, params)
        values = dequantize(torch.where(torch.rand(codes.shape) < 1 / thinned, codes, codes // 2), params)
        again = weight_params(values, planned_weight(format, group, "grid"))
        assert torch.equal(dequantize(quantize(values, again), again), values)


def test_multiples_of_a_short_step_are_exact() -> None:
    steps = short(torch.rand(1000) * torch.logspace(-20, 20, 1000))
    codes = torch.arange(256.0)
    assert torch.equal((codes[:, None] * steps).double(), codes.double()[:, None] * steps.double())


def test_values_off_every_grid_are_refused() -> None:
    with pytest.raises(PlanError, match=r"16 groups of a weight are not on a grid of int4"):
        read_grid(torch.randn(4, 64), parse_format("int4"), PerGroup(axis=1, size=16))  # type: ignore[arg-type]


# ---------------------------------------------------------------- algorithms


@cases
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_with_independent_inputs_is_rounding_to_nearest(format: str, group: int, ordered: bool) -> None:
    weight, x = layer()
    spec = planned_weight(format, group)

    def params(part: Tensor) -> Any:
        return shortened(weight_params(part, spec))

    found = compensated(weight, torch.diag((x**2).sum(0)).double(), params, ordered=ordered)
    assert found is not None and torch.equal(found, rounded(weight, weight_params(weight, spec)))


@cases
def test_gptq_is_closer_at_the_output_than_nearest(format: str, group: int) -> None:
    weight, x = layer()
    spec, moments = planned_weight(format, group), Moments.of([x])
    errors = {}
    for name in ("nearest", "gptq", "gptq-ordered"):
        found = CANDIDATES[name](weight, spec, moments)
        assert found is not None
        errors[name] = output_error(weight, found, x)
    assert errors["gptq"] < 0.8 * errors["nearest"]
    assert (
        errors["gptq-ordered"] < 0.5 * errors["nearest"]
    )  # powers are uneven: the strong columns come first


def test_gptq_passes_what_it_says_on_by_hand() -> None:
    """Two columns: the second takes up -e H_01 / H_11 of the first, the least squares solution."""
    weight, moment = torch.tensor([[0.3, 0.2]]), torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)

    def unit(part: Tensor) -> Any:
        spec = WeightSpec(layer="", argument="", format="int4", axis=0)
        return weight_params(torch.full_like(part, 7.0), spec)

    found = compensated(weight, moment, unit)
    damped = moment + 0.01 * 1.5 * torch.eye(2, dtype=torch.float64)
    second = 0.2 + (0.3 - 0.0) * damped[0, 1] / damped[1, 1]
    assert found is not None and found.tolist() == [[0.0, float(torch.round(second))]]


def test_a_column_that_no_sample_reaches_is_rounded_to_nearest() -> None:
    weight, x = layer()
    x[:, 5] = 0
    spec = planned_weight("int4", 0)
    found = CANDIDATES["gptq"](weight, spec, Moments.of([x]))
    nearest = rounded(weight, weight_params(weight, spec))
    assert found is not None and torch.equal(found[:, 5], nearest[:, 5])
    assert not torch.equal(found, nearest)


def test_without_any_input_there_is_nothing_to_compensate() -> None:
    weight, x = layer()
    assert CANDIDATES["gptq"](weight, planned_weight(), Moments.of([torch.zeros_like(x)])) is None


@cases
def test_hqq_lowers_the_norm_that_it_minimises(format: str, group: int) -> None:
    weight, _ = layer()
    start = weight_params(weight, planned_weight(format, group, "minmax"))
    found = half_quadratic(weight, start)
    assert (loss(weight, found) <= loss(weight, start)).all()
    assert loss(weight, found).sum() < loss(weight, start).sum()


@cases
def test_the_clip_search_lowers_the_error_at_the_output_of_each_group(format: str, group: int) -> None:
    weight, x = layer()
    spec = planned_weight(format, group, "minmax")
    moments = Moments.of([x])
    found, full = (CANDIDATES[name](weight, spec, moments) for name in ("clip", "nearest"))
    assert found is not None and full is not None
    size = group or weight.shape[1]
    for start in range(0, weight.shape[1], size):
        part = slice(start, start + size)
        after, before = (output_error(weight[:, part], w[:, part], x[:, part]) for w in (found, full))
        assert after <= before * (1 + 1e-5)


def test_moments_are_those_of_all_batches_together() -> None:
    _, x = layer()
    moments = Moments.of([x[:100].reshape(4, 25, -1), x[100:]])
    assert sqnr(x.double().t() @ x.double(), moments.second) > 120  # products in float32, sums in float64
    torch.testing.assert_close(moments.magnitude, x.double().abs().mean(0))
    error = torch.randn(3, x.shape[1])
    assert moments.power(error) == pytest.approx(output_error(error, torch.zeros_like(error), x), rel=1e-5)


def test_awq_without_an_exponent_is_plain_rounding_and_its_choice_is_no_worse() -> None:
    weight, x = layer()
    spec, moments = planned_weight(), Moments.of([x])
    plain = output_error(weight, dequantize(quantize(weight, p := weight_params(weight, spec)), p), x)
    tried = [rounding_error(weight, spec, normalised(moments.magnitude**a), moments) for a in EXPONENTS]
    assert tried[0] == pytest.approx(plain, rel=1e-5)
    factor = best_factor([(weight, spec)], moments)
    assert factor is not None and rounding_error(weight, spec, factor, moments) == min(tried) < 0.9 * plain


# ---------------------------------------------------------------- graphs


class Gated(nn.Module):
    """A norm and a gated MLP with an uneven gain, as in decoders."""

    def __init__(self, width: int = 32, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width, bias=bias)
        self.down = nn.Linear(2 * width, width)
        self.norm.weight.data.copy_(torch.logspace(-1, 1, width))
        self.up.weight.data[::16] *= 20  # some channels of the product stand out

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        result: Tensor = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return result


def decided(method: str, base: str = "w4a16", **changes: Any) -> tuple[Graph, list[Tensor], Decision]:
    mixed = torch.randn(32, 32)
    data = [torch.randn(4, 9, 32) @ mixed for _ in range(3)]
    graph = run(CANONICAL, trace(Gated().eval(), data[0]))
    recipe = find_recipe({"base": base, "weight_method": method, **changes})
    return graph, data, decide(graph, data, recipe, FULL_CODES)


@pytest.mark.parametrize("bias", [True, False])
def test_awq_folds_into_norms_and_products_and_keeps_the_function(bias: bool) -> None:
    data = [torch.randn(4, 9, 32) for _ in range(2)]
    graph = run(CANONICAL, trace(Gated(bias=bias).eval(), data[0]))
    plan = planned(graph, data, find_recipe("w4a16"), ONNX_RUNTIME_CPU, silent).plan
    after = scale_channels(graph, plan, [[x] for x in data], {spec.layer for spec in plan.weights})
    assert [note.outcome for note in after.notes if note.rule == "awq"] == ["applied", "applied"]
    (old,), (new,) = evaluate(graph, data[:1]), evaluate(after, data[:1])
    assert sqnr(old, new) > 100
    changed = [name for name in after.tensors if name not in graph.tensors]
    assert len(changed) == 4 + bias  # gain, gate, up (once for both), down; the bias of up


def test_awq_leaves_alone_what_others_read() -> None:
    class Watched(Gated):
        def forward(self, x: Tensor) -> Any:
            y = self.norm(x)
            up = self.up(y)
            return self.down(nn.functional.silu(self.gate(y)) * up), up, y

    data = [torch.randn(4, 9, 32)]
    graph = run(CANONICAL, trace(Watched().eval(), data[0]))
    plan = planned(graph, data, find_recipe("w4a16"), ONNX_RUNTIME_CPU, silent).plan
    after = scale_channels(graph, plan, [[x] for x in data], {spec.layer for spec in plan.weights})
    assert [(note.outcome, note.reason) for note in after.notes if note.rule == "awq"] == [
        ("refused", "its output is also read by output")
    ]
    assert after.tensors.keys() == graph.tensors.keys()


@pytest.mark.parametrize("method", [name for name in WEIGHT_METHODS if name != "nearest"])
@pytest.mark.parametrize("base", ["w4a16", "w8a16", "int8", "int8-dynamic"])
def test_the_graph_holds_the_weights_that_the_codes_decode_to(method: str, base: str) -> None:
    _, _, found = decided(method, base, smooth=None, bias_correction=False)
    specs = [spec for spec in found.plan.weights if spec.observer == "grid"]
    assert {spec.layer for spec in specs} == found.rounded.keys()
    quantized = run((materialize(found.plan), *SIMPLIFY_QDQ), found.graph)
    for spec in specs:
        stored = arguments(arguments(quantized.by_name[spec.layer])["weight"])
        codes, scale, zero = (
            quantized.tensors[str(stored[key].target)] for key in ("q", "scale", "zero_point")
        )
        decoded = torch.ops.qcompiler.dequantize(
            codes, scale, zero, stored["format"], stored["axis"], stored["block"]
        )
        assert torch.equal(decoded, found.graph.tensors[found.rounded[spec.layer].constant])
        assert spec.scores[spec.method] == max(spec.scores.values()) >= spec.scores["nearest"]
        assert spec.scores.keys() <= {*METHODS[method]}
    assert plan_from_json(plan_to_json(found.plan)) == found.plan


def test_best_is_kept_for_its_measured_quality() -> None:
    _, _, found = decided("best")
    assert len(found.rounded) == 3
    notes = {note.rule: note for note in found.graph.notes if note.node == "whole graph"}
    assert notes.keys() == {"round", "awq"} and notes["round"].outcome == "applied"


def test_a_layer_put_back_to_float_gets_its_weight_back() -> None:
    graph, data, found = decided("gptq")
    floats = dict.fromkeys(found.rounded, "as asked")
    back = found.keeping_float(floats)
    assert not back.rounded and not back.plan.weights
    assert torch.equal(evaluate(graph, data[:1])[0], evaluate(back.graph, data[:1])[0])
    one = next(iter(found.rounded))
    partly = found.keeping_float({one: "as asked"})
    assert partly.rounded.keys() == found.rounded.keys() - {one}
    assert {spec.observer for spec in partly.plan.weights} == {"grid"}


def test_every_method_of_a_recipe_is_a_row_and_tries_nearest_too() -> None:
    assert tuple(METHODS) == WEIGHT_METHODS
    assert all("nearest" in tried and {*tried} <= CANDIDATES.keys() for tried in METHODS.values())


def test_with_fewer_rows_than_inputs_gptq_is_not_tried_and_says_so() -> None:
    data = [torch.randn(1, 9, 32)]
    graph = run(CANONICAL, trace(Gated().eval(), data[0]))
    found = decide(graph, data, find_recipe("w4a16"), ONNX_RUNTIME_CPU)
    assert all(spec.scores.keys() <= {"nearest"} for spec in found.plan.weights)
    reasons = {note.reason for note in found.graph.notes if (note.rule, note.outcome) == ("round", "refused")}
    assert "gptq and gptq-ordered need as many rows of data as the layer has inputs" in reasons


def test_biases_are_corrected_for_weights_that_were_rounded_before() -> None:
    graph, _, found = decided("gptq", "int8", smooth=None, bias_correction=False)
    exact = {layer: kept.before for layer, kept in found.rounded.items()}
    corrected = correct_bias(found.graph, found.plan, found.ranges, exact)
    name = next(iter(exact))
    inputs = found.ranges[str(graph.by_name[name].args[0])].mean
    error = found.graph.tensors[found.rounded[name].constant] - exact[name]
    old, new = (g.tensors[str(arguments(g.by_name[name])["bias"].target)] for g in (found.graph, corrected))
    torch.testing.assert_close(old - new, error @ inputs, rtol=1e-3, atol=1e-6)
    assert (old != new).any()


@pytest.mark.parametrize("method", ["gptq", "awq", "best"])
def test_what_does_not_measure_better_leaves_no_trace(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "score", lambda self, decision: 0.0)
    graph, _, found = decided(method)
    assert not found.rounded and found.graph.tensors.keys() == graph.tensors.keys()
    assert {(spec.method, spec.observer) for spec in found.plan.weights} == {("nearest", "mse")}


def test_data_that_is_not_finite_is_refused_by_its_batch() -> None:
    data = [torch.randn(4, 9, 32), torch.full((4, 9, 32), torch.nan)]
    graph = run(CANONICAL, trace(Gated().eval(), data[0]))
    with pytest.raises(CalibrationError, match="calibration batch 2 contains NaN"):
        decide(graph, data, find_recipe("w4a16"), ONNX_RUNTIME_CPU)


def test_a_layer_without_batch_dimension_is_rounded() -> None:
    x = torch.randn(32)
    graph = run(CANONICAL, trace(nn.Linear(32, 4).eval(), x))
    plan = planned(graph, [x], find_recipe("w4a16"), ONNX_RUNTIME_CPU, silent).plan
    found = round_weights(graph, plan, [[torch.randn(32)] for _ in range(40)])
    assert [layer.scores.keys() for layer in found.layers.values()] == [{*METHODS["gptq"]}]


def test_a_layer_may_have_its_own_method() -> None:
    _, _, found = decided("nearest", overrides=[{"pattern": "down", "weight_method": "gptq"}])
    assert [spec.observer for spec in found.plan.weights] == ["mse", "mse", "grid"]


def test_what_is_no_linear_in_integers_is_refused_with_the_reason() -> None:
    x = [torch.randn(2, 3, 8, 8)]
    graph = run(CANONICAL, trace(nn.Conv2d(3, 4, 3).eval(), x[0]))
    found = decide(graph, x, find_recipe({"base": "int8", "weight_method": "gptq"}), ONNX_RUNTIME_CPU)
    notes = [note.reason for note in found.graph.notes if note.rule == "round"]
    assert "only the weights of linears are rounded with care" in notes or not found.rounded
