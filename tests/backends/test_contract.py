"""The lowering contract: what was planned against what ONNX Runtime executes, and why they differ."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.api import explain
from qcompiler.backends.base import Execution
from qcompiler.backends.ort import Ort, OrtExecutable
from qcompiler.backends.ort.contract import planned_name, read_execution
from qcompiler.backends.reference import Reference
from qcompiler.errors import ContractError
from qcompiler.numerics import sqnr
from qcompiler.passes.check import Contract, contract
from qcompiler.passes.decide import Decision
from qcompiler.plan import LayerPlan, Plan
from qcompiler.proof import quantized


class Residual(nn.Module):
    """conv -> (conv, add): an activation with two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        return F.relu(self.second(y) + y)


Lowered = tuple[Decision, OrtExecutable]


def lowered(model: nn.Module, inputs: Any, recipe: Any) -> Lowered:
    decision = explain(model.eval(), inputs, recipe=recipe)
    return decision, Ort().lower(quantized(decision), threads=1)


def promised(found: Lowered) -> Contract:
    decision, engine = found
    ran = engine.execution(decision.plan)
    return contract(decision.plan, ran.layers, ran.stray)


def test_int8_activations_are_a_surprise_with_its_reason() -> None:
    found = promised(lowered(Residual(), torch.randn(2, 3, 8, 8), {"activations": "int8"}))
    assert {row.layer.op for row in found.surprises} == {"conv2d", "add"}
    assert all("activations are int8" in row.reason for row in found.surprises)
    assert not found.holds
    with pytest.raises(ContractError, match="uint8"):
        found.enforce()


@pytest.fixture(scope="module")
def residual() -> Lowered:
    return lowered(Residual(), torch.randn(2, 3, 8, 8), "int8")


def test_uint8_activations_are_as_planned(residual: Lowered) -> None:
    found = promised(residual)
    assert found.holds
    found.enforce()
    assert [row.kernel for row in found.rows] == ["QLinearConv", "QLinearConv", "QLinearAdd"]


def test_the_profile_speaks_of_planned_layers(residual: Lowered) -> None:
    decision, engine = residual
    times = engine.profile([torch.randn(2, 3, 8, 8)])
    assert {layer.node for layer in decision.plan.layers} <= set(times)
    assert "x_q" in times
    assert all(spent >= 0 for spent in times.values())


def test_threads_get_the_same_results(residual: Lowered) -> None:
    _, engine = residual
    samples = [torch.randn(1 + i % 3, 3, 8, 8) for i in range(40)]
    wanted = [engine([x])[0] for x in samples]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: engine([x])[0], samples))
    assert all(map(torch.equal, found, wanted))


# ---------------------------------------------------------------- linears


class Linears(nn.Module):
    """Linears in 2-D and 3-D, with and without a bias, alone and before a ReLU, each on its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 32, bias=i % 2 == 0) for i in range(6))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows = x[:, 0]
        inputs = (rows * 2, rows * 3, x * 4, x * 5, rows * 6, x * 7)
        y = [layer(value) for layer, value in zip(self.layers, inputs, strict=True)]
        return (*y[:4], F.relu(y[4]), F.relu(y[5]))


@pytest.mark.parametrize("recipe", ["w4a16", "w8a16"])
def test_weights_in_few_bits_run_as_matmulnbits(recipe: str) -> None:
    """And as the reference says: activations rounded in blocks, then summed up to float32's own error."""
    x = torch.randn(3, 5, 64)
    decision, engine = lowered(Linears(), x, recipe)
    rows = promised((decision, engine)).rows
    linears = [row for row in rows if row.layer.op == "linear"]
    assert [row.kernel for row in linears] == ["MatMulNBits"] * 6
    assert {row.executed for row in linears} == {"int4" if recipe == "w4a16" else "int8"}
    reference = Reference().lower(engine.graph)
    for batch in (1, 3, 4):
        sample = torch.randn(batch, 5, 64)
        for found, wanted in zip(engine([sample]), reference([sample]), strict=True):
            assert sqnr(wanted, found) > 120


def test_dynamic_linears_run_on_integers() -> None:
    x = torch.randn(3, 5, 64)
    decision, engine = lowered(Linears(), x, "int8-dynamic")
    rows = [row for row in promised((decision, engine)).rows if row.layer.op == "linear"]
    assert {row.executed for row in rows} == {"int8"}
    assert {row.kernel for row in rows} <= {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    checked = engine.verify([x])
    assert len(checked) == 6 and all(node.max_lsb <= node.allowed for node in checked)


# ---------------------------------------------------------------- reading an optimized model


def layer(node: str, *, op: str = "conv2d", precision: str = "int8", codes: bool = True) -> LayerPlan:
    return LayerPlan(
        node=node,
        label=node,
        op=op,
        kernel="QLinearConv",
        precision=precision,
        why="",
        output_quantized=codes,
    )  # fmt: skip


def executed(folder: Path, nodes: list[Any], layers: list[LayerPlan], **types: Any) -> Execution:
    """Read a model of these nodes; every value that none of them makes is a constant of the type given."""
    made = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node.input if name not in made)
    constants = [numpy_helper.from_array(np.zeros(1, types.get(name, np.float32)), name) for name in read]
    output = helper.make_empty_tensor_value_info(nodes[-1].output[0])
    graph = helper.make_graph(nodes, "read", [], [output], constants)
    onnx.save(helper.make_model(graph), folder / "optimized.onnx")
    return read_execution(folder / "optimized.onnx", Plan(recipe="int8", target="cpu", layers=tuple(layers)))


def pair(kind: str, x: str, name: str) -> Any:
    return helper.make_node(kind, [x, "scale", "zero"], [name], name=name)


@pytest.mark.parametrize(
    ("kind", "codes", "reason"),
    [
        (np.int8, True, "activations are int8"),
        (np.int16, True, "16-bit activations"),
        (np.uint8, False, "its result is not quantized"),
        (np.uint8, True, "no integer kernel around it"),
    ],
)
def test_reasons(kind: Any, codes: bool, reason: str, tmp_path: Path) -> None:
    nodes = [
        pair("QuantizeLinear", "x", "x_q"),
        pair("DequantizeLinear", "x_q", "x_dq"),
        helper.make_node("Conv", ["x_dq", "w"], ["y"], name="conv2d"),
    ]
    (found,) = executed(tmp_path, nodes, [layer("conv2d", codes=codes)], zero=kind).layers
    assert (found.kernel, found.precision) == ("Conv", "float")
    assert reason in found.reason


def test_a_layer_that_is_gone_was_merged(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"], name="other")]
    (found,) = executed(tmp_path, nodes, [layer("relu", precision="float")]).layers
    assert (found.kernel, found.precision, found.reason) == ("", "float", "merged into another kernel")


def test_a_pair_between_kernels_is_stray(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QLinearConv", ["x", "s", "z"], ["conv2d_q"], name="conv2d"),
        pair("DequantizeLinear", "conv2d_q", "conv2d_dq"),
        pair("QuantizeLinear", "conv2d_dq", "relu_q"),
        helper.make_node("QLinearConv", ["relu_q", "s", "z"], ["y"], name="conv2d_1"),
    ]
    layers = [layer("conv2d"), layer("conv2d_1")]
    assert executed(tmp_path, nodes, layers, zero=np.uint8).stray == ("conv2d_dq",)
    # A float op that was planned there, and that ONNX Runtime found implied by the range, is no stray pair.
    planned = [*layers, layer("relu", op="relu", precision="float")]
    assert executed(tmp_path, nodes, planned, zero=np.uint8).stray == ()


def test_pairs_at_the_edges_are_not_stray(tmp_path: Path) -> None:
    nodes = [
        pair("DequantizeLinear", "codes", "start"),
        pair("QuantizeLinear", "start", "again"),
        helper.make_node("QLinearConv", ["again", "s", "z"], ["y"], name="conv2d"),
        pair("DequantizeLinear", "y", "out"),
    ]
    assert executed(tmp_path, nodes, [layer("conv2d")], zero=np.uint8, codes=np.uint8).stray == ()


@pytest.mark.parametrize(
    ("kernel", "attributes", "precision"),
    [
        ("QLinearConv", {}, "int8"), ("DynamicQuantizeMatMul", {}, "int8"),
        ("MatMulNBits", {"bits": 4}, "int4"), ("MatMulNBits", {"bits": 8}, "int8"),
        ("FusedConv", {}, "float"),
    ],
)  # fmt: skip
def test_precision_of_kernels(
    kernel: str, attributes: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    nodes = [helper.make_node(kernel, ["x", "w"], ["y"], name="conv2d", **attributes)]
    (found,) = executed(tmp_path, nodes, [layer("conv2d")]).layers
    assert (found.kernel, found.precision) == (kernel, precision)


@pytest.mark.parametrize(("codes", "precision"), [(np.uint8, "int8"), (np.float32, "float")])
def test_picking_kernels_are_integer_on_codes(codes: Any, precision: str, tmp_path: Path) -> None:
    nodes = [helper.make_node("MaxPool", ["x"], ["y"], name="max_pool2d")]
    (found,) = executed(tmp_path, nodes, [layer("max_pool2d", op="max_pool2d")], x=codes).layers
    assert found.precision == precision


@pytest.mark.parametrize(
    "name",
    ["conv2d", "fused conv2d", "conv2d_nhwc", "conv2d_token_12", "conv2d/MatMulAddFusion"],
)
def test_names_are_found_under_what_fusions_write_around_them(name: str) -> None:
    assert planned_name(name) == "conv2d"
