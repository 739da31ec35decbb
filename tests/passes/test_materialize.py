"""A plan carried out: text in, text out, and integers where it says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import PlanError
from qcompiler.ir import Graph, arguments, evaluate, format_text, trace
from qcompiler.numerics import PerTensor, params_from_range, parse_format, quantize
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.decide import Decision, planned
from qcompiler.passes.materialize import materialize
from qcompiler.passes.simplify import SIMPLIFY_QDQ
from qcompiler.plan import Plan, ValueSpec
from qcompiler.progress import silent
from qcompiler.recipe import find_recipe
from qcompiler.rewrite import run
from qcompiler.target import ONNX_RUNTIME_CPU


def decided(model: nn.Module, *inputs: Tensor, recipe: Any = "int8") -> Decision:
    graph = run(CANONICAL, trace(model.eval(), inputs))
    return planned(graph, [inputs], find_recipe(recipe), ONNX_RUNTIME_CPU, silent)


def written(found: Decision) -> Graph:
    return run((materialize(found.plan), *SIMPLIFY_QDQ), found.graph)


def code(graph: Graph) -> list[str]:
    """The text without constants."""
    return [line for line in format_text(graph).splitlines() if " = tensor(" not in line]


def small_cnn() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3))


def test_a_small_cnn_is_integers_from_its_first_quantize_to_its_last_linear() -> None:
    assert code(written(decided(small_cnn(), torch.randn(2, 1, 8, 8)))) == """\
input_1: f32[n0, 1, 8, 8] = input()
input_1_q: u8[n0, 1, 8, 8] = qcompiler.quantize.default(input_1, input_1_scale, input_1_zero_point, 'uint8', None, 0)
input_1_dq: f32[n0, 1, 8, 8] = qcompiler.dequantize.default(input_1_q, input_1_scale, input_1_zero_point, 'uint8', None, 0)
sym_size_int_1 = aten.sym_size.int(input_1, 0)
dequantize_default: f32[2] = qcompiler.dequantize.default(_0_bias_codes, _0_bias_scale, _0_bias_zero_point, 'int32', 0, 0)
dequantize_default_1: f32[2, 1, 3, 3] = qcompiler.dequantize.default(_0_weight_codes, _0_weight_scale, _0_weight_zero_point, 'int8', 0, 0)
conv2d: f32[n0, 2, 6, 6] = aten.conv2d.default(input_1_dq, dequantize_default_1, dequantize_default, [1, 1], [0, 0], [1, 1], 1)
relu: f32[n0, 2, 6, 6] = aten.relu.default(conv2d)
relu_q: u8[n0, 2, 6, 6] = qcompiler.quantize.default(relu, relu_scale, relu_zero_point, 'uint8', None, 0)
relu_dq: f32[n0, 2, 6, 6] = qcompiler.dequantize.default(relu_q, relu_scale, relu_zero_point, 'uint8', None, 0)
max_pool2d: f32[n0, 2, 3, 3] = aten.max_pool2d.default(relu_dq, [2, 2], [2, 2], [0, 0], [1, 1], False)
max_pool2d_q: u8[n0, 2, 3, 3] = qcompiler.quantize.default(max_pool2d, max_pool2d_scale, max_pool2d_zero_point, 'uint8', None, 0)
view_default: u8[n0, 18] = aten.view.default(max_pool2d_q, [sym_size_int_1, 18])
view_dq: f32[n0, 18] = qcompiler.dequantize.default(view_default, view_scale, view_zero_point, 'uint8', None, 0)
dequantize_default_2: f32[3, 18] = qcompiler.dequantize.default(_4_weight_codes, _4_weight_scale, _4_weight_zero_point, 'int8', 0, 0)
linear: f32[n0, 3] = aten.linear.default(view_dq, dequantize_default_2, _4_bias)
return [linear]""".splitlines()  # fmt: skip  # noqa: E501


def test_weights_and_biases_are_stored_as_integers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3), nn.ReLU())
    found = decided(model, torch.randn(2, 1, 8, 8))
    tensors = written(found).tensors
    for name, value in (("0", found.plan.values[0]), ("2", found.plan.values[1])):
        source: Any = model[int(name)]
        weight, scale = source.weight.detach(), tensors[f"{name}.weight.scale"]
        rows = scale.reshape(-1, *[1] * (weight.dim() - 1))
        assert tensors[f"{name}.weight.codes"].dtype == torch.int8
        assert torch.equal(tensors[f"{name}.weight.codes"].float(), torch.round(weight / rows))
        assert not tensors[f"{name}.weight.zero_point"].any()
        step = torch.tensor(value.scale) * scale
        bias = torch.round(source.bias.detach().double() / step.double())
        assert tensors[f"{name}.bias.codes"].dtype == torch.int32
        assert torch.equal(tensors[f"{name}.bias.codes"].double(), bias)
        assert torch.equal(tensors[f"{name}.bias.scale"], step)
    assert not any(name in tensors for name in found.graph.tensors)  # no float weight is left


class Readers(nn.Module):
    """A norm that two linears and a residual read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z: Tensor = y + self.q(y) * self.k(y).exp()
        return z


@pytest.mark.parametrize(("recipe", "op"), [("int8", "quantize"), ("int8-dynamic", "dynamic_quantize")])
def test_linears_share_one_quantize_and_the_residual_reads_float(recipe: str, op: str) -> None:
    lines = code(written(decided(Readers(), torch.randn(2, 5, 8), recipe=recipe)))
    assert sum(f"= qcompiler.{op}.default(layer_norm" in line for line in lines) == 1
    assert sum("aten.linear.default(layer_norm_dq," in line for line in lines) == 2
    assert any("aten.add.Tensor(layer_norm, " in line for line in lines)


def test_a_dynamic_linear_keeps_its_float_bias_and_quantizes_its_weight() -> None:
    graph = written(decided(nn.Linear(8, 4), torch.randn(2, 8), recipe="int8-dynamic"))
    (linear,) = (node for node in graph.nodes if node.name == "linear")
    assert str(arguments(linear)["bias"].target) == "bias"
    assert graph.tensors["bias"].is_floating_point()
    assert {t.dtype for name, t in graph.tensors.items() if "codes" in name} == {torch.int8}


def test_weights_only_are_stored_in_groups_and_activations_stay_float() -> None:
    x = torch.randn(2, 64)
    found = decided(nn.Linear(64, 4), x, recipe="w4a16")
    graph = written(found)
    codes = graph.tensors["linear.weight.codes"]
    assert codes.shape == (4, 64) and codes.abs().max() == 7
    assert graph.tensors["linear.weight.scale"].shape == (4, 2)
    assert not any("qcompiler.quantize" in line for line in code(graph))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_is_held_in_the_type_of_torch(name: str) -> None:
    x = torch.randn(4, 16)
    graph = written(
        decided(nn.Linear(16, 4), x, recipe={"base": "fp8", "weights": name, "activations": name})
    )
    assert {str(t.dtype) for key, t in graph.tensors.items() if "codes" in key} == {f"torch.{name}"}
    assert "bias" in graph.tensors


class WithTable(nn.Module):
    """A constant that an integer add and a float op read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.table = nn.Parameter(torch.randn(1, 4, 8, 8) + 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x) + self.table, x.sum() + self.table


def test_a_constant_beside_codes_is_stored_with_the_range_of_its_own_values() -> None:
    model, x = WithTable(), torch.randn(2, 3, 8, 8)
    graph = written(decided(model, x))
    table = model.table.detach()
    params = params_from_range(
        table.min(), table.max(), parse_format("uint8"), PerTensor(), scheme="asymmetric"
    )
    assert torch.equal(graph.tensors["table.codes"], quantize(table, params))
    assert torch.equal(graph.tensors["table.scale"], params.scale)
    assert torch.equal(graph.tensors["table"], table)  # for the float reader
    assert torch.equal(evaluate(graph, [x])[1], x.sum() + table)


def test_tied_weights_become_codes_for_each_layer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x).relu(), self.layer(y * 100).relu() + self.layer.weight.sum()

    x, y = torch.randn(4, 8), torch.randn(4, 8)
    found = decided(Tied(), x, y)
    graph = written(found)
    for old, new in zip(evaluate(found.graph, [x, y]), evaluate(graph, [x, y]), strict=True):
        assert (old - new).abs().max() < 0.02 * old.abs().max()
    first, second = (t for name, t in graph.tensors.items() if "bias.scale" in name)
    assert (second > 50 * first).all()  # each bias in steps of its own input


def test_a_bias_that_dwarfs_its_weights_survives() -> None:
    layer, x = nn.Linear(8, 3), torch.randn(16, 8)
    layer.weight.data[0] = 1e-12
    layer.bias.data[0] = 0.75
    (y,) = evaluate(written(decided(layer, x)), [x])
    torch.testing.assert_close(y[:, 0], torch.full((16,), 0.75))


def test_a_plan_for_another_graph_is_refused() -> None:
    found = decided(nn.Linear(8, 4), torch.randn(2, 8))
    stranger = ValueSpec(value="conv9", label="conv9", format="uint8", why="")
    with pytest.raises(PlanError, match=r"speaks of 'conv9', which the graph lacks; plan again"):
        run((materialize(replace(found.plan, values=(stranger,))),), found.graph)


def test_an_empty_plan_changes_nothing() -> None:
    found = decided(small_cnn(), torch.randn(2, 1, 8, 8))
    graph = run((materialize(Plan(recipe="none", target="cpu")),), found.graph)
    assert format_text(graph) == format_text(found.graph)
