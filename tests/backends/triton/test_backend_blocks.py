"""Models whose linears have a scale for each block of 128, on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.api import explain
from qcompiler.backends.reference import Reference
from qcompiler.backends.triton.decisions import Decisions, Linear
from qcompiler.backends.triton.engine.backend import Triton
from qcompiler.backends.triton.engine.executable import TritonExecutable
from qcompiler.backends.triton.engine.layers import layers_of
from qcompiler.backends.triton.engine.readings import Reading
from qcompiler.backends.triton.tuning.asked import problems_of
from qcompiler.errors import PlanError
from qcompiler.ir import Graph, evaluate
from qcompiler.passes.decide import Decision, decide
from qcompiler.plan import plan_from_json, plan_to_json
from qcompiler.proof import quantized
from qcompiler.qat.prepare import prepare_qat
from qcompiler.recipe import find_recipe
from qcompiler.target import find_target

CPU = torch.device("cpu")


class Net(nn.Module):
    """Inputs and outputs are no whole numbers of blocks; two linears read one value."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.left, self.right = nn.Linear(300, 150), nn.Linear(150, 40), nn.Linear(150, 40)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.up(x))
        return torch.add(self.left(y), self.right(y))


def model() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Net().eval(), torch.randn(24, 300)


@cache
def decided(dtype: torch.dtype = torch.float32) -> tuple[Graph, Decision]:
    net, x = model()
    decision = explain(net.to(dtype), x.to(dtype), recipe="fp8-block", target="cuda")
    return quantized(decision), decision


def lowered(**options: Any) -> TritonExecutable:
    return Triton("cuda", **options).lower(decided()[0])


def test_products_of_blocks_are_those_of_the_reference() -> None:
    executable, (_, x), plan = lowered(), model(), decided()[1].plan
    ran = {layer.node: layer.kernel for layer in executable.execution(plan).layers}
    assert ran["linear"] == ran["linear_1"] == ran["linear_2"] == "fp8_block_linear"
    assert {layer.kernel for layer in plan.layers if layer.op == "linear"} == {"block-scaled linear"}
    assert [each.max_lsb for each in executable.verify([x])] == [0, 0, 0]
    (found,), (wanted,) = executable([x]), Reference("cuda").lower(executable.graph)([x])
    # behind silu, which is computed in two ways, a code may be the neighbour: a sixteenth of a number
    assert (found - wanted).norm() < 2**-4 * wanted.norm()


def test_verify_finds_a_wrong_scale_of_a_square() -> None:
    executable, (_, x) = lowered(), model()
    name = f"{executable.layers.found[0].scale}.squares"
    held = executable.program([x]).graph.tensors[name]
    assert held.shape == (2, 3) and held.is_contiguous()
    executable.constants[name, CPU] = held.index_put((torch.tensor(1), torch.tensor(2)), held[1, 2] * 1.01)
    assert [each.max_lsb > 0 for each in executable.verify([x])] == [True, False, False]


def test_few_rows_and_nan_are_as_ever() -> None:
    executable, (_, x) = lowered(), model()
    few = x[:3].index_fill(0, torch.tensor(1), torch.nan)
    assert executable([few])[0].isnan().all(1).tolist() == [False, True, False]
    assert all((each.kernel, each.max_lsb) == ("float", 0) for each in executable.verify([few]))
    one = x.clone()
    one[5, 290] = torch.nan
    assert executable([one])[0].isnan().any(1).nonzero().tolist() == [[5]]


@pytest.mark.thorough
def test_models_in_halves_have_scales_in_float32() -> None:
    graph, _ = decided(torch.bfloat16)
    executable, x = Triton("cuda").lower(graph), model()[1].bfloat16()
    assert executable([x])[0].dtype == torch.bfloat16
    assert [each.max_lsb for each in executable.verify([x])] == [0, 0, 0]


def test_what_is_trained_is_what_runs() -> None:
    net, x = model()
    trained = prepare_qat(net, x, recipe="fp8-block", target="cuda", progress=False).eval()
    simulated = evaluate(decided()[0], [x])[0]
    assert torch.equal(trained(x), simulated) and not torch.equal(simulated, net(x))


def test_measured_rows_decide_and_have_problems_of_their_own() -> None:
    linear = Linear(format="e4m3b128", N=150, K=300, out="fp32", heavy=True)
    product, made = problems_of(linear, [Reading(by="rows", x="fp32", readers=(linear,))], 64)
    assert product.text == "fp8_block_linear, e4m3, M 64, N 150, K 304, fp32, heavy"
    assert made.text == "quantize_blocks, e4m3, M 64, K 300, fp32"
    others = [Linear(format="e4m3b128", N=40, K=150, out="fp32", heavy=heavy) for heavy in (False, True)]
    table = {
        linear: Decisions(names=("float",), measured=True),
        **{other: Decisions(names=("scaled_mm",), measured=True) for other in others},
    }
    first, *rest = lowered(table=table).choices([model()[1]]).values()
    assert first.by.name == "float" and {one.by.name for one in rest} == {"fp8_block_linear"}
    assert {one.why for one in rest} == {"40 outputs are no multiple of 128"}


def test_a_plan_with_blocks_is_read_back() -> None:
    plan = decided()[1].plan
    assert plan_from_json(plan_to_json(plan)) == plan
    assert all(weight.square and weight.group_size == 128 for weight in plan.weights)
    assert [value.block for value in plan.values] == [128, 128]


def test_scales_that_are_no_squares_are_no_layer() -> None:
    graph, _ = decided()
    name = layers_of(graph, find_target("cuda")).found[0].scale
    uneven = graph.tensors[name].clone()
    uneven[7] *= 2
    found = layers_of(replace(graph, tensors={**graph.tensors, name: uneven}), find_target("cuda"))
    assert found.refused["linear"].startswith("its weight has no scale for each square of 128")


@pytest.mark.parametrize(
    ("recipe", "target", "sentence"),
    [
        ({"base": "fp8-block", "group_size": 64}, "cuda", "group size 64 does not fit integer activations"),
        ({"base": "int8-dynamic", "group_size": 128}, "cuda", "group size 128 does not fit"),
        ({"base": "fp8-block", "weight_observer": "mse"}, "cuda", "set weight_observer to 'minmax'"),
        ("fp8-block", "cuda-sm80", "'float8_e4m3fn' cannot take their range at run time"),
        ("fp8-block", "cpu", "'float8_e4m3fn' cannot take their range at run time"),
    ],
)
def test_what_no_kernel_reads_is_refused(recipe: Mapping[str, Any] | str, target: str, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        decide(decided()[1].graph, [[model()[1]]], find_recipe(recipe), find_target(target))


def test_one_value_has_blocks_or_rows() -> None:
    recipe = find_recipe("fp8-block").overriding("right", group_size=0)
    with pytest.raises(PlanError, match="as float8_e4m3fn, float8_e4m3fn in blocks of 128"):
        decide(decided()[1].graph, [[model()[1]]], recipe, find_target("cuda"))
