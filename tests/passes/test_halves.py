"""Models in bfloat16 and float16: what is searched and folded for them is as good as for float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qcompiler.errors import CalibrationError
from qcompiler.ir import Graph, arguments, evaluate, trace
from qcompiler.ir.graph import call_widened
from qcompiler.numerics import IntFormat, PerChannel, dequantize, fake_quantize, quantize
from qcompiler.passes import awq
from qcompiler.passes.abreast import Moments
from qcompiler.passes.awq import scale_channels
from qcompiler.passes.calibrate import Statistics, calibrate
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import Decision, decide, planned
from qcompiler.passes.equalize import equalize
from qcompiler.passes.grid import find_grid, shortened
from qcompiler.passes.round_weights import METHODS, try_all
from qcompiler.passes.smooth import norm_outputs, smooth
from qcompiler.passes.weights import weight_params
from qcompiler.plan import WeightSpec
from qcompiler.progress import silent
from qcompiler.proof import quantized
from qcompiler.recipe import find_recipe
from qcompiler.rewrite import run
from qcompiler.target import NVIDIA_GPU

halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
CASES = [("int4", 32), ("uint4", 32), ("int8", 0)]


def planned_weight(format: str = "int4", group: int = 32, method: str = "gptq") -> WeightSpec:
    return WeightSpec(
        layer="layer", argument="weight", format=format, axis=0, group_size=group, observer="minmax",
        method=method, scale_type="bfloat16",
    )  # fmt: skip


def layer(dtype: torch.dtype, rows: int = 16, width: int = 64) -> tuple[Tensor, Tensor]:
    """A weight with heavy tails, and inputs whose channels are correlated and of unequal power."""
    x = torch.randn(400, 12) @ torch.randn(12, width) + 0.3 * torch.randn(400, width)
    weight = torch.distributions.StudentT(4.0).sample((rows, width)) * 0.05
    return weight.to(dtype), (x * torch.logspace(-1, 1, width)).to(dtype)


def traced(model: nn.Module, x: Any) -> Graph:
    return run(CANONICAL, trace(model.eval(), x, floats=NVIDIA_GPU.floats))


# ---------------------------------------------------------------- grids


@halves
@pytest.mark.parametrize(("format", "group"), CASES)
def test_steps_and_codes_come_back_from_rounded_values(dtype: torch.dtype, format: str, group: int) -> None:
    """Exactly, where a group has a code one step from its zero: that value is the step itself."""
    weight, _ = layer(dtype)
    params = shortened(weight_params(weight, planned_weight(format, group)), "bfloat16")
    assert isinstance(params.format, IntFormat)
    codes = quantize(weight, params)
    zero = params.zero_point
    beside = torch.where(zero < params.format.qmax, zero + 1, zero - 1)
    codes.view(*zero.shape, -1)[..., 0] = beside.to(codes.dtype)
    exact = dequantize(codes, params)
    is_held = torch.equal(exact.to(dtype).float(), exact)
    assert is_held == ((dtype, format) == (torch.float16, "int4")), "8 bits and 3 fill the 11 of float16"
    found, on_grid = find_grid(exact.to(dtype), params.format, params.granularity)
    assert on_grid.all()
    assert torch.equal(fake_quantize(exact.to(dtype), found), exact)


@halves
@pytest.mark.parametrize("bits", [4, 8])
def test_every_step_has_values_that_are_read_back(dtype: torch.dtype, bits: int) -> None:
    """Each step of 8 bits with many a largest code and some other one: the values come back bit for bit."""
    format = IntFormat(bits=bits, signed=True)
    steps, largest = torch.cartesian_prod(
        torch.arange(128, 256), torch.arange(format.qmax, 0, -(format.qmax // 7))
    ).unbind(1)
    other = (torch.rand(len(steps)) * (largest + 1)).floor()
    values = (torch.stack([largest, -other], 1) * (steps / 2**14)[:, None]).to(dtype)
    found, on_grid = find_grid(values, format, PerChannel(axis=0))
    assert on_grid.all()
    assert torch.equal(fake_quantize(values, found).to(dtype), values)


def test_where_float16_ends_there_is_no_grid_and_the_layer_says_so() -> None:
    """65504 / 127 is 515.8, and 516 the nearest step of 8 bits; 127 of them are 65532."""
    weight, x = layer(torch.float16)
    weight[3, 5] = 65504
    found = try_all(weight, planned_weight("int8", 0), Moments.of([x]))
    assert found.weight is None and not found.scores
    assert found.obstacles == dict.fromkeys(METHODS["gptq"], "leave values that float16 cannot hold")


# ---------------------------------------------------------------- one layer


@halves
@pytest.mark.parametrize(("format", "group"), CASES)
def test_no_method_is_worse_than_nearest_and_gptq_is_better(
    dtype: torch.dtype, format: str, group: int
) -> None:
    """By the very numbers that kernels multiply, s (q - z) unrounded; the inputs are correlated."""
    weight, x = layer(dtype)
    moments = Moments.of([x])

    def error(held: Tensor, spec: WeightSpec) -> float:
        return moments.power(weight.float() - fake_quantize(held, weight_params(held, spec)))

    errors = {"nearest": error(weight, planned_weight(format, group))}
    for method in ("hqq", "gptq", "best"):
        spec = planned_weight(format, group, method)
        found = try_all(weight, spec, moments)
        assert found.weight is not None and found.weight.dtype == dtype
        assert found.scores.keys() == {*METHODS[method]} and not found.obstacles
        errors[method] = error(found.weight, replace(spec, observer="grid"))
    assert max(errors.values()) == errors["nearest"]
    assert errors["gptq"] < 0.8 * errors["nearest"] and errors["best"] <= errors["gptq"]


# ---------------------------------------------------------------- whole models


@halves
def test_linears_sum_in_float32_and_round_once(dtype: torch.dtype) -> None:
    """Whole numbers, whose sums float32 holds and halves do not."""
    x, w, b = (torch.randint(-31, 32, shape).to(dtype) for shape in ((5, 64), (3, 64), (3,)))
    node = fx.Graph().call_function(torch.ops.aten.linear.default)
    found = call_widened(node, (x, w, b), {}, {})
    exact = F.linear(x.double(), w.double(), b.double())
    assert torch.equal(found, exact.to(dtype)) and not torch.equal(found.double(), exact)


class Norm(nn.Module):
    """RMS norm as models in halves have it: in float32 up to the gain (LlamaRMSNorm of transformers)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.logspace(-1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        y: Tensor = self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        return y


class Gated(nn.Module):
    """A norm and a gated MLP, as in decoders; some channels of the product stand out."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.norm = Norm(width)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.up.weight.data[::16] *= 20

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        result: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return result


@cache
def subject(dtype: torch.dtype) -> tuple[Graph, list[Tensor]]:
    torch.manual_seed(0)
    model, mixed = Gated().to(dtype), torch.randn(64, 64)
    data = [(torch.randn(6, 9, 64) @ mixed).to(dtype) for _ in range(3)]
    return traced(model, data[0]), data


def decided(dtype: torch.dtype, recipe: Any) -> Decision:
    graph, data = subject(dtype)
    return decide(graph, data, find_recipe(recipe), NVIDIA_GPU)


@pytest.mark.parametrize(
    ("dtype", "base", "method", "layers"),
    [
        (torch.float16, "w4a16-best", "best", ["down"]),
        (torch.bfloat16, "w8a16", "gptq", ["down", "gate"]),
        (torch.bfloat16, "int8", "gptq", ["down"]),
        (torch.float16, "int8-dynamic", "gptq", ["down"]),
    ],
)
def test_the_graph_holds_the_weights_that_the_codes_decode_to(
    dtype: torch.dtype, base: str, method: str, layers: list[str]
) -> None:
    overrides = [{"pattern": layer, "weight_method": method} for layer in layers]
    plain = {"weight_method": "nearest", "weight_observer": "minmax", "smooth": None}
    found = decided(dtype, {"base": base, **plain, "overrides": overrides})
    specs = [spec for spec in found.plan.weights if spec.observer == "grid"]
    assert {spec.layer for spec in specs} == found.rounded.keys()
    assert len(specs) == len(layers)
    lowered = quantized(found)
    for spec in specs:
        given = arguments(arguments(lowered.by_name[spec.layer])["weight"])
        codes, scale, zero = (
            lowered.tensors[str(given[name].target)] for name in ("q", "scale", "zero_point")
        )
        assert torch.equal(scale.bfloat16().float(), scale)
        values = torch.ops.qcompiler.dequantize(
            codes, scale, zero, given["format"], given["axis"], given["block"], dtype=given["dtype"]
        )
        assert values.dtype == dtype
        assert torch.equal(values, found.graph.tensors[found.rounded[spec.layer].constant])
        assert spec.scores[spec.method] == max(spec.scores.values()) >= spec.scores["nearest"]


def test_a_method_is_kept_for_the_whole_model_in_halves() -> None:
    """The judge compares outputs with the model's own; both figures are in the notes."""
    graph, data = subject(torch.bfloat16)
    found = decide(graph, data, find_recipe({"base": "w4a16", "weight_observer": "minmax"}), NVIDIA_GPU)
    (note,) = (note for note in found.graph.notes if note.node == "whole graph")
    assert (note.rule, note.outcome) == ("round", "applied")
    assert [spec.method[:4] for spec in found.plan.weights] == ["gptq"] * 3
    back = found.keeping_float(dict.fromkeys(found.rounded, "as asked")).graph
    assert torch.equal(evaluate(graph, data[:1])[0], evaluate(back, data[:1])[0])


def test_what_overflows_in_float16_is_refused_with_its_batch() -> None:
    graph, data = subject(torch.float16)
    name = next(name for name in graph.tensors if name.endswith("up.weight"))
    graph = replace(graph, tensors={**graph.tensors, name: torch.full_like(graph.tensors[name], 3000.0)})
    why = "contains inf, because the model computes it in float16 from calibration batch 1"
    with pytest.raises(CalibrationError, match=f"the input of 'down.*' {why}"):
        decide(graph, data, find_recipe("w4a16"), NVIDIA_GPU)


# ---------------------------------------------------------------- scalings


def powers(readers: Sequence[tuple[Tensor, WeightSpec]], _: Moments) -> Tensor:
    """Factors that bfloat16 folds without rounding."""
    result: Tensor = 2.0 ** torch.randint(-3, 4, readers[0][0].shape[1:])
    return result


def test_awq_folds_into_the_gain_of_a_norm_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """By powers of two the function stays what it was, bit for bit."""
    monkeypatch.setattr(awq, "best_factor", powers)
    graph, data = subject(torch.bfloat16)
    plan = planned(graph, data, find_recipe("w4a16"), NVIDIA_GPU, silent).plan
    after = scale_channels(graph, plan, [[x] for x in data], {spec.layer for spec in plan.weights})
    assert [note.outcome for note in after.notes if note.rule == "awq"] == ["applied", "applied"]
    changed = after.tensors.keys() - graph.tensors.keys()
    assert len(changed) == 5 and {x.dtype for x in after.tensors.values()} == {torch.bfloat16}
    assert torch.equal(evaluate(graph, data[:1])[0], evaluate(after, data[:1])[0])


def test_awq_refuses_what_float16_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awq, "best_factor", powers)
    graph, data = subject(torch.float16)
    plan = planned(graph, data, find_recipe("w4a16"), NVIDIA_GPU, silent).plan
    name = next(name for name in graph.tensors if name.endswith("norm.weight"))
    graph = replace(graph, tensors={**graph.tensors, name: torch.full_like(graph.tensors[name], 60000.0)})
    after = scale_channels(graph, plan, [[x * 0] for x in data], {spec.layer for spec in plan.weights})
    notes = [(note.outcome, note.reason) for note in after.notes if note.rule == "awq"]
    assert notes == [("refused", "what is folded would leave the range of its type"), ("applied", "")]
    assert not [name for name in after.tensors if name.startswith("norm.") and name.endswith(".awq")]


def in_float32(graph: Graph) -> Graph:
    """The same numbers in another type, for passes that only change constants."""
    return replace(graph, tensors={name: x.float() for name, x in graph.tensors.items()})


def test_smoothing_rounds_once() -> None:
    """Factors are those of the same model in float32, and what is folded that model's, rounded."""
    graph, data = subject(torch.bfloat16)
    ranges = calibrate(graph, data[:1], norm_outputs(graph))
    found, wanted = (smooth(g, ranges, exponent=0.5) for g in (graph, in_float32(graph)))
    assert [note.outcome for note in found.notes if note.rule == "smooth"] == ["applied"]
    assert found.tensors.keys() == wanted.tensors.keys() != graph.tensors.keys()
    assert all(torch.equal(x, wanted.tensors[name].bfloat16()) for name, x in found.tensors.items())


def test_equalization_rounds_once() -> None:
    first, second, third = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 8)
    for uneven in (first, second):
        uneven.weight.data *= torch.logspace(-1, 1, 24)[:, None]
    chain = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third).half()
    graph = traced(chain, torch.randn(2, 16).half())
    found, wanted = equalize(graph), equalize(in_float32(graph))
    assert all(torch.equal(x, wanted.tensors[name].half()) for name, x in found.tensors.items())
    assert any(name.endswith(".equalized") for name in found.tensors)


@halves
def test_statistics_of_halves_are_those_of_the_same_numbers_in_float32(dtype: torch.dtype) -> None:
    """Sums of many batches, and squares beyond 65504."""
    batches = [(torch.randn(64, 3) * 300).to(dtype) for _ in range(5)]
    found, wanted = Statistics(name="x", axis=-1), Statistics(name="x", axis=-1)
    for batch in batches:
        found.observe(batch)
        wanted.observe(batch.float())
    for one, other in ((found.largest, wanted.largest), (found.squares, wanted.squares)):
        assert one is not None and other is not None and torch.equal(one, other) and one.isfinite().all()
    assert torch.equal(found.mean, wanted.mean)
