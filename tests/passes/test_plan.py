"""Every tensor gets a format, a range and a reason; what has no legal choice is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.errors import PlanError, TargetError
from qcompiler.ir import Graph, trace
from qcompiler.numerics import expected_error, parse_format
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import Decision, planned
from qcompiler.plan import Plan, ValueSpec, plan_from_json, plan_to_json
from qcompiler.progress import silent
from qcompiler.recipe import find_recipe
from qcompiler.rewrite import run
from qcompiler.target import ONNX_RUNTIME_CPU
from qcompiler.target.machine import Cpu


def canonical(model: nn.Module, x: Tensor) -> Graph:
    return run(CANONICAL, trace(model.eval(), x))


def decision(model: nn.Module, *data: Tensor, recipe: Any = "int8") -> Decision:
    graph = canonical(model, data[0])
    return planned(graph, data, find_recipe(recipe), ONNX_RUNTIME_CPU, silent)


def values(plan: Plan) -> dict[str, ValueSpec]:
    return {value.value: value for value in plan.values}


class Branches(nn.Module):
    """A small CNN with a residual, a max pool, a concat, a ReLU6 and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.right, self.head = nn.Conv2d(4, 4, 1), nn.Linear(8 * 16, 5)
        self.stem.weight.data *= 8  # so that the ReLU6 cuts something off

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.stem(x))
        y = torch.cat([y + self.left(y), self.right(y).relu()], 1)
        result: Tensor = self.head(F.max_pool2d(y, 2).flatten(1))
        return result


@pytest.fixture(scope="module")
def cnn() -> Decision:
    torch.manual_seed(0)
    return decision(Branches(), *(torch.randn(4, 3, 8, 8) for _ in range(3)))


class Attention(nn.Module):
    """A pre-norm block whose norm is also read by a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z: Tensor = y + self.out(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
        return z


# ---------------------------------------------------------------- values


class Late(nn.Module):
    """A pool whose scale is that of a value made before the second convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return self.second(y.exp()), F.max_pool2d(y, 2)


def test_values_and_layers_stand_in_execution_order() -> None:
    found = decision(Late(), torch.randn(2, 3, 8, 8))
    order = [node.name for node in found.graph.nodes]
    for names in ([v.value for v in found.plan.values], [layer.node for layer in found.plan.layers]):
        assert len(names) >= 4
        assert names == sorted(names, key=order.index)


def test_what_a_max_pool_or_a_reshape_passes_on_shares_scale_and_zero_point(cnn: Decision) -> None:
    found = values(cnn.plan)
    joined = [value for value in found.values() if value.shared]
    assert [value.value for value in joined] == ["cat", "max_pool2d", "view"]
    assert {value.shared for value in joined} == {"cat"}
    assert len({(value.scale, value.zero_point, value.lo, value.hi, value.format) for value in joined}) == 1


def test_an_absorbed_clamp_is_implied_by_the_codes(cnn: Decision) -> None:
    found = values(cnn.plan)
    (clamp,) = (value for name, value in found.items() if name.startswith("clamp"))
    (relu,) = (value for name, value in found.items() if name.startswith("relu"))
    assert (clamp.zero_point, relu.zero_point) == (0, 0)
    assert clamp.hi == 6  # otherwise the next line would say nothing
    assert torch.tensor(255.0) * torch.tensor(clamp.scale) <= 6


@pytest.mark.parametrize("bound", [6.0, 1.0, 0.1, 1e-3, 5.9999])
def test_no_code_exceeds_the_bound_of_a_clamp_even_where_a_float_would_round_up(bound: float) -> None:
    conv = nn.Conv2d(1, 1, 1)
    conv.weight.data.fill_(1.0)
    model = nn.Sequential(conv, nn.Hardtanh(0, bound))
    x = torch.linspace(-20, 20, 256).reshape(1, 1, 16, 16)
    (_, clamp) = decision(model, x, recipe={"observers": ["minmax"]}).plan.values
    assert torch.tensor(255.0) * torch.tensor(clamp.scale) <= torch.tensor(bound)
    assert clamp.scale * 255 == pytest.approx(bound, rel=1e-6)


def test_a_clamp_that_is_not_absorbed_bounds_nothing() -> None:
    model = nn.Sequential(nn.Hardtanh(-3, -1), nn.Conv2d(1, 1, 1))
    x = torch.linspace(-9, 9, 16).reshape(1, 1, 4, 4)
    clamp = decision(model, x, recipe={"observers": ["minmax"]}).plan.values[0]
    assert (clamp.lo, clamp.hi, clamp.zero_point) == (-3, 0, 255)
    assert clamp.scale * 255 == pytest.approx(3)


def test_the_observer_is_the_one_of_least_score_and_never_worse_than_minmax() -> None:
    heavy = torch.randn(64, 3, 8, 8) ** 3  # long tails, so that clipping pays
    result = decision(nn.Conv2d(3, 4, 3), heavy)
    chosen = set()
    for value in result.plan.values:
        assert value.scores[value.observer] == min(value.scores.values()) <= value.scores["minmax"]
        histogram = result.ranges[value.value].histogram
        error = expected_error(histogram, value.lo, value.hi, parse_format(value.format), "asymmetric")
        assert error == pytest.approx(value.scores[value.observer])
        chosen.add(value.observer)
    assert chosen - {"minmax"}


def test_a_recipe_may_name_the_observers() -> None:
    x = torch.randn(8, 3, 8, 8) ** 3
    found = decision(nn.Conv2d(3, 4, 3), x, recipe={"observers": ["minmax"]}).plan.values
    assert {value.observer for value in found} == {"minmax"}
    assert found[0].lo == float(x.min()) and found[0].hi == float(x.max())


def test_queries_keys_and_values_read_one_tensor_while_the_residual_reads_float() -> None:
    plan = decision(Attention(), torch.randn(2, 5, 8)).plan
    norm = values(plan)["layer_norm"]
    assert norm.readers == ("linear", "linear_1", "linear_2")
    assert norm.why == "read as codes by 3 kernels, by the others as float"
    assert [value.value for value in plan.values] == ["layer_norm", "scaled_dot_product_attention"]


def test_a_dynamic_value_is_quantized_once_for_all_its_readers() -> None:
    plan = decision(Attention(), torch.randn(2, 5, 8), recipe="int8-dynamic").plan
    norm, attention = plan.values
    assert norm.dynamic and norm.readers == ("linear", "linear_1", "linear_2")
    assert attention.readers == ("linear_3",)
    assert {layer.kernel for layer in plan.layers if layer.op == "linear"} == {"MatMulIntegerToFloat"}


def test_every_float_op_is_mentioned_with_its_reason() -> None:
    plan = decision(Attention(), torch.randn(2, 5, 8)).plan
    floats = {layer.op: layer.why for layer in plan.layers if layer.precision == "float"}
    assert set(floats) == {"layer_norm", "scaled_dot_product_attention", "add"}
    assert floats["layer_norm"] == "the target has no integer kernel for this op"


# ---------------------------------------------------------------- weights


def test_weights_are_per_output_channel_and_need_no_limit_on_this_kind_of_cpu(
    cnn: Decision, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {(w.format, w.axis, w.group_size) for w in cnn.plan.weights} == {("int8", 0, 0)}
    for features, limit in [(("avx2",), 64), ((), 64), (("avx2", "avx_vnni"), 0), (("avx512_vnni",), 0)]:
        cpu = Cpu(name="other", features=features)
        monkeypatch.setattr("qcompiler.passes.plan.this_cpu", lambda cpu=cpu: cpu)
        assert {weight.limit for weight in cnn.keeping_float({}).plan.weights} == {limit}


def test_the_limit_holds_for_every_kernel_that_multiplies_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.passes.plan.this_cpu", lambda: Cpu(name="other", features=()))
    limits = {
        recipe: decision(nn.Linear(64, 4), torch.randn(2, 64), recipe=recipe).plan.weights[0].limit
        for recipe in ("int8", "int8-dynamic", "w8a16", "w4a16")
    }
    assert limits == {"int8": 64, "int8-dynamic": 64, "w8a16": 0, "w4a16": 0}


def test_a_group_size_that_an_override_gives_must_divide_and_any_must_have_a_kernel() -> None:
    x, named = torch.randn(2, 48), find_recipe("w4a16").overriding("linear", group_size=64)
    with pytest.raises(
        PlanError, match=r"group size 64 does not divide the 48 inputs of the layer at linear"
    ):
        decision(nn.Linear(48, 4), x, recipe=named)
    fitting = decision(nn.Linear(48, 4), x, recipe=named.overriding("linear", group_size=16))
    assert [weight.group_size for weight in fitting.plan.weights] == [16]
    with pytest.raises(PlanError, match=r"int4 with group size 8 have no kernel.*\[16, 32, 64, 128\]"):
        decision(nn.Linear(64, 4), torch.randn(2, 64), recipe={"base": "w4a16", "group_size": 8})
    for base in ("int8", "int8-dynamic"):
        with pytest.raises(PlanError, match="group size 32 does not fit integer activations"):
            decision(nn.Linear(64, 4), torch.randn(2, 64), recipe={"base": base, "group_size": 32})


def test_weights_only_of_a_format_without_a_kernel_are_refused() -> None:
    with pytest.raises(PlanError, match="it reads no uint8 weights"):
        decision(nn.Linear(64, 4), torch.randn(2, 64), recipe={"base": "w8a16", "weights": "uint8"})
    with pytest.raises(TargetError, match="target 'cpu' cannot hold weights in 'int3'"):
        decision(nn.Linear(64, 4), torch.randn(2, 64), recipe={"weights": "int3"})


# ---------------------------------------------------------------- refusals


def test_layers_around_one_tensor_must_agree_on_its_format() -> None:
    overrides = [{"pattern": "q", "activations": "int16"}, {"pattern": "k", "activations": "uint16"}]
    with pytest.raises(
        PlanError,
        match=r"around 'norm/layer_norm' want its value as int16, uint16, because one tensor has one",
    ):
        decision(Attention(), torch.randn(2, 5, 8), recipe={"overrides": overrides})


def test_an_explicit_format_beats_that_of_the_target() -> None:
    overrides = [{"pattern": "q", "activations": "int16"}]
    plan = decision(Attention(), torch.randn(2, 5, 8), recipe={"overrides": overrides}).plan
    norm, attention = plan.values
    assert (norm.format, attention.format) == ("int16", "uint8")
    assert "no integer kernel for this format" in norm.why


def heavy(sign: float) -> nn.Linear:
    """sum |q_w| 255 = K 127 255, over 2^31 from K = 66312 on."""
    layer = nn.Linear(66_312, 2, bias=False)
    layer.weight.data.fill_(1.0)
    layer.weight.data[1] *= sign
    return layer


@pytest.fixture
def full_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU whose sums hold all codes of 8 bits, whatever this one does."""
    cpu = Cpu(name="other", features=("avx512_vnni",))
    monkeypatch.setattr("qcompiler.passes.plan.this_cpu", lambda: cpu)


@pytest.mark.usefixtures("full_codes")
def test_a_sum_that_could_wrap_is_refused_from_the_actual_weights() -> None:
    x = torch.rand(2, 66_312)  # one-sided, so that a code is 255 from its zero point
    with pytest.raises(PlanError, match=r"over 66312 products can exceed 32 bits at linear.*override"):
        decision(heavy(1.0), x)
    small = heavy(1.0)
    small.weight.data[:, 1:] = 1e-3  # the same length, but codes of 0
    assert decision(small, x).plan.weights
    kept = decision(heavy(-1.0), x, recipe={"overrides": [{"pattern": "linear", "weights": None}]})
    assert not kept.plan.weights


@pytest.mark.usefixtures("full_codes")
def test_a_bias_takes_part_in_the_sum() -> None:
    """Where the kernel returns codes; a float result has its bias added in float."""
    layer = nn.Linear(40_000, 2)
    layer.weight.data.fill_(1.0)
    assert layer.bias is not None
    layer.bias.data.fill_(0.0)
    x = torch.rand(2, 40_000)
    clamped = nn.Sequential(layer, nn.ReLU())
    assert decision(clamped, x).plan.weights
    layer.bias.data.fill_(30_000.0)  # 0.98e9 steps of s_x s_w beside 1.30e9 from the products
    with pytest.raises(PlanError, match="can exceed 32 bits"):
        decision(clamped, x)
    assert decision(layer, x).plan.weights


# ---------------------------------------------------------------- the plan as a value


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic", "fp8"])
def test_a_plan_survives_json(recipe: str) -> None:
    plan = decision(Attention(), torch.randn(2, 5, 8), recipe=recipe).plan
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan
    with pytest.raises(Exception, match="structuring Plan"):
        plan_from_json({**plan_to_json(plan), "extra": 1})


def test_a_plan_prints_every_layer_and_value_with_its_reason(cnn: Decision) -> None:
    plan = replace(
        cnn.plan, values=(replace(cnn.plan.values[0], lo=-1.0, hi=2.5, observer="mse"),),
        layers=cnn.plan.layers[:1],
    )  # fmt: skip
    assert str(plan).splitlines() == [
        "plan of recipe int8 for target cpu",
        "  stem/conv2d                              int8     QLinearConv                "
        "compute-bound: integer kernel on calibrated input",
        "  x                                        uint8    [-1, 2.5] by mse                     "
        "read as codes by 1 kernel, by the others as float",
    ]
    assert len(str(cnn.plan).splitlines()) == 1 + len(cnn.plan.layers) + len(cnn.plan.values)
    assert cnn.plan.table().row_count == len(cnn.plan.layers)


def test_the_same_data_gives_an_equal_plan() -> None:
    torch.manual_seed(0)
    model, data = Branches(), [torch.randn(4, 3, 8, 8) for _ in range(2)]
    assert decision(model, *data).plan == decision(model, *data).plan == decision(model, *data[::-1]).plan
