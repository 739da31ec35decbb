"""The backend "triton" on ranges that are known before: int8 from one product to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.api import explain
from qcompiler.backends.triton.decisions import Decisions, Linear
from qcompiler.backends.triton.engine import predict
from qcompiler.backends.triton.engine.backend import Triton
from qcompiler.backends.triton.engine.executable import TritonExecutable
from qcompiler.backends.triton.engine.layers import layers_of, onward
from qcompiler.backends.triton.engine.readings import Reading, readings_of
from qcompiler.backends.triton.tuning.device import DEVICES
from qcompiler.ir import Graph
from qcompiler.passes.check import contract
from qcompiler.proof import quantized
from qcompiler.recipe import Recipe
from qcompiler.target import find_target
from tests.backends.triton.asking import asked, measured
from tests.backends.triton.test_backend import CPU, calls, lowered, reference

ops = torch.ops.qcompiler
CALIBRATED = Recipe(name="calibrated")  # "int8" without what it does to weights and biases before


def counted(executable: TritonExecutable, inputs: list[Tensor]) -> list[int]:
    """Products to codes, products to floats, quantizers by one scale and by row."""
    names = ("linear_codes", "int8_linear", "quantize_by_scale", "quantize_rows")
    return [calls(executable, inputs, getattr(ops, f"triton_{name}").default) for name in names]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mlp", [2, 1, 1, 0]),
        pytest.param("block", [1, 5, 3, 0], marks=pytest.mark.thorough),
    ],
)
def test_int8_has_the_bits_of_the_reference(name: str, wanted: list[int]) -> None:
    """Codes are handed on where only products read them: through ReLU, SiLU and GELU."""
    executable, decision, inputs = lowered(name, CALIBRATED)
    assert all(
        torch.equal(y, z) for y, z in zip(executable(inputs), reference(executable, inputs), strict=True)
    )
    assert counted(executable, inputs) == wanted
    distances = executable.verify(inputs)
    assert all(each.max_lsb == each.changed == 0 for each in distances)
    assert sum(each.kernel == "linear_codes" for each in distances) == wanted[0]
    ran = executable.execution(decision.plan)
    assert ran.kernels["linear_codes"] == wanted[0] and ran.kernels["int8_linear"] == wanted[1]
    assert contract(decision.plan, ran.layers, ran.stray).holds


def test_codes_of_the_plan_have_no_zero_point() -> None:
    _, decision, _ = lowered("mlp", CALIBRATED)
    values = [value for value in decision.plan.values if value.format == "int8"]
    assert len(values) == 3 and all(value.zero_point == 0 for value in values)
    assert any(value.lo == 0 for value in values)  # behind a ReLU, where one would move it


def test_models_in_halves_round_no_floats_between() -> None:
    executable, _, inputs = lowered("mlp", CALIBRATED, torch.bfloat16)
    assert counted(executable, inputs) == [2, 1, 1, 0]
    (found,), (wanted,) = executable(inputs), reference(executable, inputs)
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert all(each.max_lsb == 0 for each in executable.verify(inputs))


def test_few_rows_and_none_are_read_as_floats() -> None:
    """No layer makes codes that another would have to read as floats."""
    executable, _, inputs = lowered("mlp", CALIBRATED)
    few = [inputs[0][:3]]
    assert counted(executable, few) == [0, 0, 0, 0]
    assert all((each.kernel, each.max_lsb) == ("float", 0) for each in executable.verify(few))
    assert executable([inputs[0][:0]])[0].shape == (0, 5)


MIDDLE = Linear(format="int8", N=24, K=33, out="fp32", heavy=True)


@pytest.mark.parametrize(
    ("name", "wanted"), [("float", [0, 2, 2, 0]), ("int_mm", [1, 1, 2, 0]), ("int8_linear", [2, 1, 1, 0])]
)
def test_what_reads_floats_or_knows_no_codes_gets_and_returns_floats(name: str, wanted: list[int]) -> None:
    table: Mapping[Linear, Decisions] = {MIDDLE: Decisions(names=(name,), measured=True)}
    executable, _, inputs = lowered("mlp", CALIBRATED, table=table)
    assert counted(executable, inputs) == wanted
    assert all(each.max_lsb == 0 for each in executable.verify(inputs))
    if name != "float":
        assert torch.equal(executable(inputs)[0], reference(executable, inputs)[0])


class Fork(nn.Module):
    """A result that others read, and products of many dimensions, with a residual behind the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(24, 24), nn.Linear(24, 32), nn.Linear(32, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return y, y + self.third(torch.relu(self.second(y)))


@cache
def forked() -> tuple[Graph, list[Tensor]]:
    torch.manual_seed(0)
    model, x = Fork().eval(), torch.randn(4, 6, 24)
    return quantized(explain(model, x, recipe=CALIBRATED, target="cuda")), [x]


def fork() -> tuple[TritonExecutable, Graph, list[Tensor]]:
    graph, inputs = forked()
    return Triton().lower(graph), graph, inputs


def test_what_others_read_stays_float_and_shapes_come_back() -> None:
    executable, _, inputs = fork()
    assert counted(executable, inputs) == [1, 2, 2, 0]
    found, wanted = executable(inputs), reference(executable, inputs)
    assert all(torch.equal(y, z) for y, z in zip(found, wanted, strict=True))
    assert [tuple(y.shape) for y in found] == [(4, 6, 24)] * 2
    assert all(each.max_lsb == 0 for each in executable.verify(inputs))


def test_verify_finds_a_code_that_is_one_off() -> None:
    executable, _, inputs = fork()
    name = next(name for name in executable.program(inputs).graph.tensors if name.endswith("of_all"))
    assert executable.program(inputs).graph.tensors[name].shape == (1,)
    (handing,) = [layer for layer in executable.layers.found if layer.onward is not None]
    scale = next(
        name for name in executable.program(inputs).graph.tensors
        if name.startswith(str(handing.onward.args[1].target))  # type: ignore[union-attr]  # it has a scale
    )  # fmt: skip
    executable.constants[scale, CPU] = executable.program(inputs).graph.tensors[scale] * 1.02
    wrong = {each.kernel: each.max_lsb for each in executable.verify(inputs) if each.max_lsb}
    assert set(wrong) == {"linear_codes"} and wrong["linear_codes"] >= 1


def test_codes_with_a_zero_point_are_refused() -> None:
    _, graph, _ = fork()
    name = next(
        name for name in graph.tensors if name.endswith("zero_point") and graph.tensors[name].dim() == 0
    )
    moved: dict[str, Any] = {**graph.tensors, name: torch.tensor(3, dtype=torch.int8)}
    layers = layers_of(replace(graph, tensors=moved), find_target("cuda"))
    assert len(layers.refused) == 1 and "have a zero point" in next(iter(layers.refused.values()))
    assert all(onward(layer, ()) is None for layer in layers.found)  # where nobody reads codes


def test_codes_that_are_handed_on_take_no_pass() -> None:
    executable, *_ = lowered("mlp", CALIBRATED)
    first, second, _ = executable.layers.found
    assert second.coded is first.onward is not None
    handed = {first.onward: first}
    M, device = 8192, DEVICES[0]
    apart, together = (predict.weighed(second.x, [second], M, (), each, device).us for each in ({}, handed))
    assert apart - together == pytest.approx(predict.quantizing(M, 33, device) * 1e6)
    before, after = (predict.weighed(first.x, [first], M, (), each, device).us for each in ({}, handed))
    assert before - after == pytest.approx(M * 33 / device.bandwidth * 1e6)


# ---------------------------------------------------------------- what is asked of a device


def test_codes_that_are_handed_on_are_looked_up_as_they_are_measured() -> None:
    """Two products write codes, so one pass by a known scale is left, and floats behind the last."""
    executable, _, inputs = lowered("mlp", CALIBRATED)
    found = asked(executable, inputs)
    assert found == [
        "quantize_by_scale, int8, M 24, K 20, fp32",
        "int8_linear, int8, M 24, N 33, K 32, bf16, heavy",
        "int8_linear, int8, M 24, N 24, K 48, bf16, heavy",
        "int8_linear, int8, M 24, N 5, K 32, fp32",
    ]
    assert {*found} < measured(executable, 24), "and what runs where one of them is computed in floats"


def test_where_a_vendors_product_writes_floats_a_pass_is_looked_up_that_is_measured() -> None:
    executable, _, inputs = lowered(
        "mlp", CALIBRATED, table={MIDDLE: Decisions(names=("int_mm",), measured=True)}
    )
    found = asked(executable, inputs)
    assert "quantize_by_scale, int8, M 24, K 24, fp32" in found
    assert {*found} < measured(executable, 24)


def test_a_result_that_others_read_makes_no_codes() -> None:
    executable, *_ = fork()
    first, second, third = (layer.problem for layer in executable.layers.found)
    assert [*readings_of(executable.layers.found)] == [
        Reading(by="scale", x="fp32", readers=(first,)),
        Reading(by="scale", x="fp32", readers=(second,)),
        Reading(by="scale", x="fp32", readers=(third,), maker=second),
    ]
