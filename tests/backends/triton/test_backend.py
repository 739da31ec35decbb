"""The backend "triton" on a CPU: what is lowered, with which numbers, and what is said of the rest."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

import qcompiler as qc
from qcompiler.api import explain
from qcompiler.backends.memory import memory_of
from qcompiler.backends.reference import Reference
from qcompiler.backends.triton.decisions import Decisions, Linear
from qcompiler.backends.triton.engine import onward, predict
from qcompiler.backends.triton.engine.backend import Triton
from qcompiler.backends.triton.engine.executable import TritonExecutable, device_of
from qcompiler.backends.triton.engine.layers import layers_of
from qcompiler.backends.triton.engine.readings import readings_of
from qcompiler.backends.triton.ops.quantize import is_read_twice
from qcompiler.backends.triton.tuning import profit
from qcompiler.backends.triton.tuning.device import DEVICES
from qcompiler.errors import ContractError, InputError, PlanError, TargetError
from qcompiler.ir import Graph, evaluate, flatten_inputs
from qcompiler.models.decoder import Decoder, Shape
from qcompiler.passes.check import contract
from qcompiler.passes.decide import Decision
from qcompiler.proof import quantized
from qcompiler.qat.prepare import prepare_qat
from qcompiler.target import find_target
from tests.backends.triton.asking import asked, measured

ops = torch.ops.qcompiler
CPU, H100 = torch.device("cpu"), DEVICES[0]


class Block(nn.Module):
    """A transformer block, norm first."""

    def __init__(self, width: int = 40, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        q, k, v = (
            linear(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = self.down(F.gelu(self.up(self.norms[1](x))))
        return torch.add(x, y)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 24), nn.SiLU(), nn.Linear(24, 5))


def decoder() -> tuple[nn.Module, Any]:
    shape = Shape(
        vocabulary=50, width=32, hidden=48, depth=1, heads=4, kv_heads=2, positions=32, family="llama"
    )
    model = Decoder(shape)
    tokens = torch.randint(0, 50, (1, 20))
    return model, (tokens, torch.tensor(0), model.empty_cache(1, 24))


def example(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return {
        "block": lambda: (Block(), torch.randn(2, 12, 40)),
        "mlp": lambda: (mlp(), torch.randn(24, 20)),
        "decoder": decoder,
    }[name]()


@cache
def decided(name: str, recipe: Any, dtype: torch.dtype) -> tuple[Graph, Decision, list[Tensor]]:
    model, inputs = example(name)
    inputs = tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
    decision = explain(model.eval().to(dtype), inputs, recipe=recipe, target="cuda")
    graph = quantized(decision)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    return graph, decision, flatten_inputs(graph, args, {})


def lowered(
    name: str, recipe: Any = "int8-dynamic", dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[TritonExecutable, Decision, list[Tensor]]:
    graph, decision, inputs = decided(name, recipe, dtype)
    return Triton("cuda", **options).lower(graph), decision, inputs


def calls(executable: TritonExecutable, inputs: list[Tensor], target: Any) -> int:
    return sum(node.target == target for node in executable.program(inputs).graph.fx.nodes)


def reference(executable: TritonExecutable, inputs: list[Tensor]) -> list[Any]:
    return Reference("cuda").lower(executable.graph)(inputs)


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", ["block", "mlp"])
def test_int8_has_the_bits_of_the_reference(name: str) -> None:
    executable, decision, inputs = lowered(name)
    found, wanted = executable(inputs), reference(executable, inputs)
    assert all(torch.equal(y, z) for y, z in zip(found, wanted, strict=True))
    distances = executable.verify(inputs)
    planned = [layer for layer in decision.plan.layers if layer.precision == "int8"]
    assert len(distances) == len(planned) == len(executable.layers.found)
    assert all((each.max_lsb, each.kernel) == (0, "int8_linear") for each in distances)


def test_models_in_halves_return_halves() -> None:
    dtype = torch.bfloat16
    executable, _, inputs = lowered("mlp", dtype=dtype)
    (found,), (wanted,) = executable(inputs), reference(executable, inputs)
    assert found.dtype == wanted.dtype == dtype
    assert all(each.max_lsb == 0 for each in executable.verify(inputs))  # of each layer by itself, bits again
    assert calls(executable, inputs, ops.triton_int8_linear.default) == 3
    float_model, _ = example("mlp")
    exact = float_model.eval()(inputs[0].float())
    rounded = float_model.to(dtype)(inputs[0])
    errors = [(y.float() - exact).norm() for y in (found, wanted, rounded)]
    assert errors[0] <= errors[1] + errors[2]  # it rounds less often than the reference does


def test_what_is_trained_is_what_runs() -> None:
    model, inputs = example("mlp")
    trained = prepare_qat(model.eval(), inputs, recipe="fp8-dynamic", target="cuda", progress=False).eval()
    executable, *_ = lowered("mlp", "fp8-dynamic")
    simulated = evaluate(executable.graph, [inputs])[0]
    assert torch.equal(trained(inputs), simulated) and not torch.equal(simulated, model(inputs))


def test_fp8_is_within_what_float32_sums_allow() -> None:
    executable, decision, inputs = lowered("mlp", "fp8-dynamic")
    ran = executable.execution(decision.plan)
    assert [layer.precision for layer in ran.layers if layer.kernel == "fp8_linear"] == ["float8_e4m3fn"] * 3
    assert all(each.max_lsb == 0 for each in executable.verify(inputs))


def test_few_rows_are_read_by_decoded_weights_within_what_rounding_leaves_out() -> None:
    executable, _, inputs = lowered("mlp")
    few = [inputs[0][:3]]
    (found,), (codes,) = executable(few), reference(executable, few)
    assert not torch.equal(found, codes)
    distances = executable.verify(few)
    assert all((each.max_lsb, each.kernel) == (0, "float") for each in distances)
    assert [executable.choices(each)["linear"].rows for each in (few, inputs)] == [3, 24]
    few[0] = few[0].index_fill(0, torch.tensor(1), torch.nan)
    assert executable(few)[0].isnan().all(1).tolist() == [False, True, False]
    assert all(each.max_lsb == 0 for each in executable.verify(few))


def test_no_rows_are_no_problem() -> None:
    table = {
        Linear(format="int8", N=24, K=33, out="fp32", heavy=True): Decisions(
            names=("int8_linear",), measured=True
        )
    }
    executable, _, inputs = lowered("mlp", table=table)
    assert executable([inputs[0][:0]])[0].shape == (0, 5)
    assert {choice.by.name for choice in executable.choices([inputs[0][:0]]).values()} == {"float"}


@pytest.mark.parametrize("name", ["int8_linear", "int_mm"])
def test_all_that_multiply_int8_have_the_same_bits(name: str) -> None:
    table = {
        Linear(format="int8", N=24, K=33, out="fp32", heavy=True): Decisions(names=(name,), measured=True)
    }
    executable, decision, inputs = lowered("mlp", table=table)
    assert executable.choices(inputs)["linear_1"].by.name == name
    assert torch.equal(executable(inputs)[0], reference(executable, inputs)[0])
    guessed, varying = executable.execution(decision.plan).remarks
    assert guessed.startswith("predicted: no measured row says what computes 2 of 3 layers")
    assert varying == "the rows of 2 layers vary by call: float, from 16 int8_linear"


def test_a_vendor_that_cannot_is_passed_over_and_it_is_said() -> None:
    table = {Linear(format="int8", N=33, K=20, out="fp32"): Decisions(names=("int_mm",), measured=True)}
    executable, decision, inputs = lowered("mlp", table=table)
    assert executable.choices(inputs)["linear"].by.name == "int8_linear"
    remarks = executable.execution(decision.plan).remarks
    assert "linear: 33 outputs are no multiple of 8; int8_linear computes it" in remarks


def test_verify_finds_a_wrong_weight() -> None:
    executable, _, inputs = lowered("mlp")
    name = f"{executable.layers.found[1].codes}.packed"
    wrong = executable.program(inputs).graph.tensors[name].clone()
    wrong[3, 4] += 1
    executable.constants[name, CPU] = wrong
    assert [each.max_lsb > 0 for each in executable.verify(inputs)] == [False, True, False]


# ---------------------------------------------------------------- what is lowered


def test_codes_are_made_once_for_all_that_read_them() -> None:
    """A decoder's layer quantizes four values, for q, k and v, the output, gate and up, and down."""
    executable, _, inputs = lowered("decoder", dtype=torch.bfloat16)
    assert calls(executable, inputs, ops.triton_int8_linear.default) == 7 + 1
    assert calls(executable, inputs, ops.triton_quantize_rows.default) == 4 + 1


def test_what_is_read_is_told_with_all_that_read_it() -> None:
    """q, k and v share their codes."""
    executable, *_ = lowered("block")
    found = readings_of(executable.layers.found)
    assert [(one.by, one.x, len(one.readers), one.maker) for one in found] == [
        ("rows", "fp32", readers, None) for readers in (3, 1, 1, 1)
    ]
    assert {*found.values()} == {1}


def test_a_decoder_in_halves_keeps_its_cache_in_halves() -> None:
    executable, _, inputs = lowered("decoder", dtype=torch.bfloat16)
    logits = memory_of(executable).feed(inputs[0])
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, executable(inputs)[0])
    assert all((each.max_lsb, each.kernel) == (0, "int8_linear") for each in executable.verify(inputs))


def test_epilogues_take_activations_and_residuals() -> None:
    executable, decision, inputs = lowered("block")
    taken = [(layer.activation, layer.residual is not None) for layer in executable.layers.found]
    assert taken == [("none", False)] * 3 + [("none", True), ("gelu", False), ("none", True)]
    assert not any(
        calls(executable, inputs, op) for op in (torch.ops.aten.gelu.default, torch.ops.aten.add.Tensor)
    )
    merged = [layer for layer in executable.execution(decision.plan).layers if not layer.kernel]
    assert [layer.node.split("_")[0] for layer in merged] == ["add", "gelu", "add"]
    assert {layer.reason for layer in merged} == {"merged into another kernel"}


@pytest.mark.parametrize("recipe", ["int8-dynamic", "fp8-dynamic"])
def test_rows_that_a_quantizer_would_read_twice_bring_their_maxima(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what a program holds, and only behind what is heavy anyway; the codes are the same."""
    for rule, wanted in ((is_read_twice, 0), (lambda width, _: width > 16, 1)):
        monkeypatch.setattr(onward, "is_read_twice", rule)
        executable, _, inputs = lowered("mlp", recipe)
        assert calls(executable, inputs, ops.triton_linear_amax.default) == wanted
        assert calls(executable, inputs, ops.triton_quantize_by_amax.default) == wanted
        assert all(each.max_lsb == 0 for each in executable.verify(inputs))
        if recipe == "int8-dynamic":
            assert torch.equal(executable(inputs)[0], reference(executable, inputs)[0])
    found = asked(executable, inputs)
    assert {one.partition(",")[0] for one in found} >= {"quantize_rows", "quantize_by_amax"}
    assert {*found} < measured(executable, 24), "and what runs where the last but one is computed in floats"


def test_a_relu_is_taken_along() -> None:
    executable, _, inputs = lowered("mlp")
    assert [layer.activation for layer in executable.layers.found] == ["relu", "silu", "none"]
    assert [layer.problem.heavy for layer in executable.layers.found] == [False, True, False]
    assert not calls(executable, inputs, torch.ops.aten.relu.default)


def test_weights_are_rows_of_whole_sixteens() -> None:
    executable, _, inputs = lowered("mlp")
    executable(inputs)
    found = [x for (name, _), x in executable.constants.items() if name.endswith("packed")]
    assert [tuple(x.shape) for x in found] == [(33, 32), (24, 48), (5, 32)]
    assert all(x.is_contiguous() and x.dtype == torch.int8 for x in found)


def test_a_program_serves_all_shapes_with_the_same_candidates() -> None:
    executable, *_ = lowered("mlp")
    for rows in (16, 24, 100, 3, 15):
        executable([torch.randn(rows, 20)])
    assert len(executable.programs) == 2


def test_time_is_told_by_planned_names() -> None:
    executable, _, inputs = lowered("mlp")
    assert {"linear", "linear_1", "linear_2", "input_1_q"} <= set(executable.profile(inputs, runs=1))


# ---------------------------------------------------------------- what is refused


def test_two_formats_in_one_product_run_in_float_and_say_so() -> None:
    recipe = qc.Recipe(name="mixed", dynamic=True).overriding("2/*", weights="float8_e4m3fn")
    graph, decision, _ = decided.__wrapped__("mlp", recipe, torch.float32)
    ran = Triton().lower(graph).execution(decision.plan)
    (row,) = [each for each in ran.layers if each.reason.startswith("no op")]
    assert (row.node, row.precision) == ("linear_1", "float")
    assert "multiplies int8 by float8_e4m3fn" in row.reason
    with pytest.raises(ContractError, match="planned as float8_e4m3fn run in float"):
        contract(decision.plan, ran.layers, ran.stray).enforce()


def test_what_always_runs_in_few_rows_is_a_surprise() -> None:
    """Where a model fixes its sizes, nothing of the example's batch is left open."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Unflatten(0, (1, -1)), Last(), nn.Linear(8, 8)).eval()
    decision = explain(model, torch.randn(20, 8), recipe="int8-dynamic", target="cuda")
    ran = Triton().lower(quantized(decision)).execution(decision.plan)
    first, last = (layer for layer in ran.layers if layer.node.startswith("linear"))
    assert (first.kernel, first.precision) == ("int8_linear", "int8")
    assert (last.kernel, last.precision) == ("float", "float")
    assert last.reason.startswith(
        "every call has 1 row, which read the weight decoded (float, from 16 int8_linear)"
    )


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


def test_fp8_is_refused_where_there_are_no_units_for_it() -> None:
    model, inputs = example("mlp")
    with pytest.raises(PlanError, match="kernels of target 'cuda-sm80' quantize to int8"):
        explain(model.eval(), inputs, recipe="fp8-dynamic", target="cuda-sm80")


def test_calibrated_fp8_has_no_kernel_and_the_plan_says_which_recipe_has() -> None:
    model, inputs = example("mlp")
    plan = explain(model.eval(), inputs, recipe="fp8", target="cuda").plan
    linears = [layer for layer in plan.layers if layer.op == "linear"]
    assert {layer.precision for layer in linears} == {"float"}
    assert all(layer.why.endswith("use a dynamic recipe") for layer in linears)


def test_targets_without_scales_of_rows_are_refused() -> None:
    with pytest.raises(TargetError, match=r"planned for target 'cpu'.*use target='cuda'"):
        Triton("cpu")


def test_inputs_are_on_one_device() -> None:
    x = torch.ones(2)
    with pytest.raises(InputError, match="inputs are on cpu and meta"):
        device_of([x, x.to("meta")])
    assert device_of([3]) == CPU


def test_a_convolution_is_no_linear_even_where_it_could_be_one() -> None:
    model, x = nn.Conv2d(4, 4, 1).eval(), torch.randn(1, 4, 3, 3)
    graph = quantized(explain(model, x, recipe="int8", target="cpu"))
    (why,) = layers_of(graph, find_target("cpu")).refused.values()
    assert why.startswith(
        "no op computes a conv on codes, nor one of 1x1 as the linear over channels that it is"
    )


# ---------------------------------------------------------------- without a GPU


def test_predictions_take_what_is_large_enough() -> None:
    """Twice the rate of bfloat16, less the pass that makes codes: arithmetic from the constants."""
    assert [pays(M, N) for M in (64, 8192) for N in (1024, 14336)] == [False, True, False, True]


def pays(M: int, N: int, K: int = 4096) -> bool:
    codes = predict.product(M, N, K, "int8", H100) + predict.quantizing(M, K, H100)
    return codes <= (1 - profit.PREDICTED) * predict.product(M, N, K, "bf16", H100)


def test_what_reads_a_value_is_weighed_together() -> None:
    """q, k and v share the pass that makes codes."""
    M, N = 8192, 1536
    together = 3 * predict.product(M, N, N, "int8", H100) + predict.quantizing(M, N, H100)
    executable, *_ = lowered("block")
    qkv = [layer for layer in executable.layers.found if layer.x is executable.layers.found[0].x]
    large = [replace(layer, problem=Linear(format="int8", N=N, K=N)) for layer in qkv]
    found = predict.weighed(large[0].x, large, M, (), {}, H100)
    assert len(large) == 3 and found.us == pytest.approx(together * 1e6)
    assert found.kept and not pays(M, N, N) and "predicted, 1.33x needed" in found.why
    alone = predict.weighed(large[0].x, large, M, [layer.anchor.name for layer in large], {}, H100)
    assert alone.us == alone.float_us and not alone.kept


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the speed guard decides")
def test_a_small_model_stays_float_where_only_predictions_can_tell() -> None:
    model, inputs = nn.Linear(20, 24), torch.randn(24, 20)
    compiled = qc.compile(model.eval(), inputs, recipe="int8-dynamic", target="cuda", progress=False)
    data = compiled.to_dict()
    assert data["speed"]["kept"] == data["manifest"]["kept"] == "float"
    assert torch.equal(compiled(inputs), model(inputs))
    text = str(compiled.report())
    assert "not timed" in text and "predicted, 1.33x needed" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the speed guard decides")
def test_an_artifact_holds_the_graph_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profit, "PREDICTED", -9.0)  # as if codes were expected to pay
    model, inputs = nn.Linear(20, 24), torch.randn(24, 20)
    compiled = qc.compile(model.eval(), inputs, recipe="int8-dynamic", target="cuda", progress=False)
    assert compiled.data["speed"]["kept"] == "quantized"
    compiled.save(tmp_path / "saved")
    loaded = qc.load(tmp_path / "saved")
    assert loaded.backend.name == "triton" and isinstance(loaded.executable, TritonExecutable)
    assert len(loaded.executable.layers.found) == 1
    assert torch.equal(loaded(inputs), compiled(inputs))
