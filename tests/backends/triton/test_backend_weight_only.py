"""The backend "triton" with weights of few bits on a CPU: what is planned, its numbers, what is refused."""

from collections import Counter
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
from qcompiler.backends.reference.kernels import Codes, weight_only_linear
from qcompiler.backends.triton.decisions import Decisions, Linear
from qcompiler.backends.triton.engine import predict
from qcompiler.backends.triton.engine.backend import Triton
from qcompiler.backends.triton.engine.executable import TritonExecutable
from qcompiler.backends.triton.engine.lower import aligned
from qcompiler.backends.triton.layouts import Weight, restored
from qcompiler.backends.triton.ops.alignment import lies_askew
from qcompiler.backends.triton.tuning.asked import problem_of
from qcompiler.backends.triton.tuning.device import DEVICES
from qcompiler.errors import PlanError
from qcompiler.ir import flatten_inputs
from qcompiler.models.decoder import Decoder, Shape
from qcompiler.passes.decide import Decision
from qcompiler.proof import quantized

ops = torch.ops.qcompiler
CPU, H100 = torch.device("cpu"), DEVICES[0]


class Residual(nn.Module):
    """SiLU and a bias behind one linear, the input added behind another."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(F.silu(self.up(x)))
        return y


def decoder() -> tuple[nn.Module, Any]:
    shape = Shape(
        vocabulary=64, width=64, hidden=128, depth=1, heads=4, kv_heads=2, positions=32, family="llama"
    )
    model = Decoder(shape)
    return model, (torch.randint(0, 64, (1, 5)), torch.tensor(0), model.empty_cache(1, 8))


def few_bits(weights: str, group_size: int) -> qc.Recipe:
    return qc.Recipe(name="few bits", weights=weights, activations=None, group_size=group_size)


INT4 = few_bits("int4", 32)


@cache
def lowered(
    name: str, recipe: Any, dtype: torch.dtype = torch.bfloat16
) -> tuple[TritonExecutable, Decision, list[Tensor]]:
    torch.manual_seed(0)
    model, inputs = decoder() if name == "decoder" else (Residual(), (torch.randn(3, 64),))
    inputs = tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
    decision = explain(model.eval().to(dtype), inputs, recipe=recipe, target="cuda")
    graph = quantized(decision)
    return Triton("cuda").lower(graph), decision, flatten_inputs(graph, inputs, {})


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("recipe", "layouts", "dtype"),
    [
        ("w4a16", ["w4h_g32"] * 2, torch.bfloat16),
        ("w8a16", ["w8_g64", "w8_g128"], torch.float16),
        (few_bits("uint4", 64), ["w4h_g64"] * 2, torch.bfloat16),
    ],
)
def test_layers_are_within_what_float32_sums_allow(
    recipe: Any, layouts: list[str], dtype: torch.dtype
) -> None:
    executable, decision, inputs = lowered("residual", recipe, dtype)
    assert [layer.problem.format for layer in executable.layers.found] == layouts
    asked = {problem_of(layer.problem, 3).scheme.partition(" ")[2] for layer in executable.layers.found}
    assert asked == {"zeros" if isinstance(recipe, qc.Recipe) else ""}, "as the op calls its problem"
    taken = [(layer.activation, layer.residual is not None) for layer in executable.layers.found]
    assert taken == [("silu", False), ("none", True)]
    assert all((each.max_lsb, each.kernel) == (0, "weight_only_linear") for each in executable.verify(inputs))
    (found,), (wanted,) = executable(inputs), Reference("cuda").lower(executable.graph)(inputs)
    assert found.dtype == wanted.dtype == dtype
    ran = executable.execution(decision.plan)
    assert [layer.precision for layer in ran.layers if layer.kernel == "weight_only_linear"] == [
        layer.precision for layer in decision.plan.layers if layer.op == "linear"
    ]


def test_weights_are_held_in_their_layout_alone() -> None:
    """Zero points where the format has them; scales as they were planned, bit by bit."""
    executable, _, inputs = lowered("residual", few_bits("uint4", 64))
    executable(inputs)
    held = {name: x for (name, _), x in executable.constants.items() if ".codes." in name}
    shapes = [(tuple(x.shape), x.dtype) for x in held.values()]
    assert shapes == [
        ((128, 32), torch.uint8), ((128, 1), torch.bfloat16), ((128, 1), torch.uint8),
        ((64, 64), torch.uint8), ((64, 2), torch.bfloat16), ((64, 2), torch.uint8),
    ]  # fmt: skip
    for layer in executable.layers.found:
        scale = executable.graph.tensors[layer.scale]
        assert torch.equal(held[f"{layer.codes}.scales"].float(), scale.float())
    symmetric, _, inputs = lowered("residual", INT4)
    symmetric(inputs)
    assert not any(name.endswith(".zeros") for name, _ in symmetric.constants)


def test_the_reference_leaves_the_input_as_it_is() -> None:
    x, q = torch.tensor([[0.3, 100.0]]).bfloat16(), torch.tensor([[7, 0], [1, 2]], dtype=torch.int8)
    scale, zero = torch.tensor([0.5, 0.25]), torch.zeros(2, dtype=torch.int8)
    weight = Codes(values=q, scale=scale, zero_point=zero, format="int8", axis=0)
    y = weight_only_linear(x, weight, None, bits=None, block=32)
    a = x[0, 0].double()
    assert torch.equal(y.double(), torch.stack([a * 3.5, (a + 200) / 4])[None].float().double())


def test_weights_rounded_with_care_are_what_the_kernel_reads() -> None:
    """The packed codes and scales decode to the values that GPTQ left in the graph, rounded to its type."""
    model = Residual().eval().bfloat16()
    data = [(torch.randn(64, 64) @ torch.randn(64, 64)).bfloat16() for _ in range(3)]
    decision = explain(model, data[0], calibration=data, recipe="w4a16", target="cuda")
    assert [spec.method[:4] for spec in decision.plan.weights] == ["gptq"] * 2
    executable = Triton("cuda").lower(quantized(decision))
    assert all(
        (each.max_lsb, each.kernel) == (0, "weight_only_linear") for each in executable.verify(data[:1])
    )
    held = {name: x for (name, _), x in executable.constants.items()}
    for layer, found in zip(executable.layers.found, decision.rounded.values(), strict=True):
        packed, scales = (held[f"{layer.codes}.{part}"] for part in ("packed", "scales"))
        weight = Weight(codes=packed, scales=scales, zeros=None, layout=layer.problem.format)
        assert torch.equal(restored(weight).bfloat16(), decision.graph.tensors[found.constant])


@pytest.mark.parametrize("part", ["packed", "scales"])
def test_verify_finds_what_is_wrong_with_a_weight(part: str) -> None:
    made, _, inputs = lowered("residual", INT4)
    executable = Triton("cuda").lower(made.graph)  # which has placed no constants yet
    name = f"{executable.layers.found[1].codes}.{part}"
    wrong = executable.program(inputs).graph.tensors[name].clone()
    wrong[3, 1] = wrong[3, 1] * 2 if part == "scales" else wrong[3, 1] ^ 7
    executable.constants[name, CPU] = wrong
    assert [each.max_lsb > 0 for each in executable.verify(inputs)] == [False, True]


def test_a_decoded_weight_is_a_decision() -> None:
    executable, _, inputs = lowered("residual", INT4)
    first = executable.layers.found[0].problem
    assert (first.format, first.N, first.K) == ("w4h_g32", 128, 64)
    table = {first: Decisions(names=("float",), measured=True)}
    tabled = Triton("cuda", table=table).lower(executable.graph)
    assert [(each.max_lsb, each.kernel) for each in tabled.verify(inputs)] == [
        (0, "float"),
        (0, "weight_only_linear"),
    ]


def test_inputs_begin_where_sixteen_bytes_are_read() -> None:
    x = torch.zeros(65).bfloat16()[1:].reshape(2, 32)
    assert lies_askew(x) and not lies_askew(aligned(x)) and aligned(aligned(x)).shape == x.shape


def test_a_decoder_of_the_llama_family() -> None:
    """Keys and values of two heads have 32 outputs, too few for a tile; gate and up are one call."""
    executable, decision, inputs = lowered("decoder", INT4)
    linears = [layer for layer in decision.plan.layers if layer.op == "linear"]
    floats = [layer.why for layer in linears if layer.precision == "float"]
    assert floats == ["its 32 outputs are no multiple of 64, as many as the kernel takes at a time"] * 2
    assert sum(len(layer.linears) for layer in executable.layers.found) == len(linears) - 2 == 6
    found = executable.verify(inputs)
    assert all(each.max_lsb == 0 for each in found)
    assert Counter(each.kernel for each in found) == {"weight_only_linear": 4, "weight_only_linear gated": 1}
    assert torch.equal(memory_of(executable).feed(inputs[0]), executable(inputs)[0])


# ---------------------------------------------------------------- what is refused


def test_models_in_float32_stay_as_they_are_and_the_plan_says_what_to_do() -> None:
    _, decision, _ = lowered("residual", INT4, torch.float32)
    whys = {layer.why for layer in decision.plan.layers if layer.op == "linear"}
    assert whys == {"its input is float32, and the kernel reads bfloat16 or float16: convert the model"}


@pytest.mark.parametrize(
    ("width", "recipe", "why"),
    [
        (72, "w8a16", "its 72 inputs are no multiple of 32, as many as the kernel takes at a time"),
        (
            96,
            few_bits("int4", 64),
            "its 96 inputs are no whole number of groups of 64; group_size 32 would fit it",
        ),
    ],
)
def test_sizes_without_a_layout_stay_float(width: int, recipe: Any, why: str) -> None:
    model, x = nn.Linear(width, 64).bfloat16().eval(), torch.ones(2, width).bfloat16()
    (layer,) = explain(model, x, recipe=recipe, target="cuda").plan.layers
    assert (layer.precision, layer.why) == ("float", why)


def test_groups_without_a_layout_are_refused() -> None:
    model, x = nn.Linear(64, 64).bfloat16().eval(), torch.ones(2, 64).bfloat16()
    with pytest.raises(PlanError, match=r"its group sizes for int4 are \[32, 64, 128\]"):
        explain(model, x, recipe=few_bits("int4", 16), target="cuda")


def test_a_plan_for_another_target_runs_in_float_and_says_why() -> None:
    """Scales of 24 bits are no bfloat16 numbers."""
    executable, decision, _ = lowered("residual", INT4)
    tensors, name = executable.graph.tensors, executable.layers.found[0].scale
    other = replace(executable.graph, tensors={**tensors, name: tensors[name] * (1 + 2.0**-12)})
    ran = Triton("cuda").lower(other).execution(decision.plan)
    reasons = [layer.reason for layer in ran.layers if layer.precision == "float" and layer.reason]
    assert "its scales are no bfloat16 numbers; plan it for this target" in reasons


# ---------------------------------------------------------------- without a GPU


def test_predictions_go_by_the_bytes_of_the_weight() -> None:
    """One row waits for the weight, of 4.75 bits with a scale and a zero point for 32; many rows do not."""
    problem = Linear(format="w4h_g32", N=14336, K=4096)
    few = predict.few_bit_bytes(problem)
    assert few == problem.N * problem.K * (0.5 + 3 / 32)

    def ratio(M: int) -> float:
        sizes = (M, problem.N, problem.K, "bf16", H100)
        return predict.product(*sizes) / predict.product(*sizes, weight=few)

    assert 2.5 < ratio(1) < 2 / 0.59375 and ratio(8192) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the speed guard decides")
def test_an_artifact_holds_the_graph_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(64, 64).bfloat16().eval(), torch.randn(3, 64).bfloat16()
    compiled = qc.compile(model, x, recipe=few_bits("int4", 32), target="cuda", progress=False)
    (said,) = compiled.executable.predicted([x])  # type: ignore[attr-defined]  # of this backend
    assert said.kept and "30% of the weights' bytes" in said.why
    compiled.save(tmp_path / "saved")
    loaded = qc.load(tmp_path / "saved")
    assert isinstance(loaded.executable, TritonExecutable) and len(loaded.executable.layers.found) == 1
    assert torch.equal(loaded(x), compiled(x))
