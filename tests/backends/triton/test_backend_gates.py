"""Gates on the backend "triton": two linears of few bits in one call, its numbers, and what stays apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

import qcompiler as qc
from qcompiler.api import explain
from qcompiler.backends.triton.decisions import Decisions, Linear, Table
from qcompiler.backends.triton.engine import predict
from qcompiler.backends.triton.engine.backend import Triton
from qcompiler.backends.triton.engine.executable import TritonExecutable
from qcompiler.backends.triton.engine.layer import Layer
from qcompiler.backends.triton.engine.lower import Call, stem
from qcompiler.backends.triton.engine.weights import weight_of
from qcompiler.backends.triton.ops.linear import ACTIVATIONS
from qcompiler.backends.triton.tuning.asked import problem_of
from qcompiler.backends.triton.tuning.device import DEVICES
from qcompiler.backends.triton.tuning.families import check
from qcompiler.ir import Graph, flatten_inputs, module_path
from qcompiler.passes.check import contract
from qcompiler.passes.decide import Decision
from qcompiler.proof import quantized

ops, H100, CPU = torch.ops.qcompiler, DEVICES[0], torch.device("cpu")
WIDTH = 192  # three times the rows of a layout, and one and a half of a tile
GATED = "weight_only_linear gated"


class Pair(nn.Module):
    """Two linears, by default without biases, and what is made of them and x."""

    def __init__(
        self, through: Callable[[Pair, Tensor], Tensor], *, biases: tuple[bool, bool] = (False, False)
    ) -> None:
        super().__init__()
        self.through = through
        self.gate, self.up = (nn.Linear(WIDTH, WIDTH, bias=bias) for bias in biases)

    def forward(self, x: Tensor) -> Tensor:
        return self.through(self, x)


class Halves(nn.Module):
    """One linear, and what is made of the halves of its result."""

    def __init__(self, through: Callable[[Tensor, Tensor], Tensor], outputs: int = 2 * WIDTH) -> None:
        super().__init__()
        self.through, self.gate = through, nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.through(*self.gate(x).chunk(2, -1))


class Sliced(Halves):
    start = WIDTH  # of the second half

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(x)
        return self.through(y[..., : self.start], y[..., self.start :])


class SlicedFromTheEnd(Sliced):
    start = -WIDTH


class Abreast(nn.Module):
    """All that read one value: to trace them once takes a fraction of the time."""

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [block(x) for block in self.blocks.values()]


def swiglu(m: Pair, x: Tensor) -> Tensor:
    y: Tensor = F.silu(m.gate(x)) * m.up(x)
    return y


TAKEN: Mapping[str, tuple[nn.Module, str]] = {
    "silu": (Pair(swiglu), "silu"),
    "gelu_turned": (Pair(lambda m, x: m.up(x) * F.gelu(m.gate(x)), biases=(True, True)), "gelu"),
    "relu_and_a_sum": (Pair(lambda m, x: x + F.relu(m.gate(x)) * m.up(x)), "relu"),
    "none": (Pair(lambda m, x: m.gate(x) * m.up(x)), "none"),
    "asymmetric": (Pair(swiglu, biases=(True, True)), "silu"),
    "halves": (Halves(lambda g, u: u * F.silu(g)), "silu"),
    "slices": (Sliced(lambda g, u: F.gelu(g) * u), "gelu"),
    "slices_from_the_end": (SlicedFromTheEnd(lambda g, u: F.silu(g) * u), "silu"),
}
READ = "the result of one of the two is read elsewhere, too"
APART: Mapping[str, tuple[nn.Module, str]] = {
    "gate_read": (Pair(lambda m, x: F.silu(g := m.gate(x)) * m.up(x) + g), READ),
    "activation_read": (Pair(lambda m, x: (g := F.silu(m.gate(x))) * m.up(x) + g), READ),
    "gelu_by_tanh": (
        Pair(lambda m, x: m.up(x) * F.gelu(m.gate(x), approximate="tanh")),
        "no kernel has aten.gelu.default as it is called here for an activation, but relu, gelu, silu",
    ),
    "two_activations": (Pair(lambda m, x: F.silu(m.gate(x)) * F.silu(m.up(x))), "both are activated"),
    "a_sum_before": (
        Pair(lambda m, x: F.silu(m.gate(x)) * (m.up(x) + x)),
        "something is added to one of the two before",
    ),
    "one_bias": (Pair(swiglu, biases=(True, False)), "one of the two has a bias, and the other has none"),
    "formats": (
        Pair(swiglu),
        "their weights are w4h_g32 and w4h_g64; plan one format and group for both",
    ),
    "zeros": (Pair(swiglu), "one of their weights has zero points, and the other has none"),
    "second_half": (
        Halves(lambda g, u: g * F.silu(u)),
        "its second half is not multiplied as it is, and kernels activate the first",
    ),
    "half_read": (Halves(lambda g, u: F.silu(g) * u + u), READ),
    "short_halves": (
        Halves(lambda g, u: F.silu(g) * u, WIDTH),
        "its halves have 96 outputs, and kernels take 64 at a time",
    ),
}
OTHERS: Mapping[str, nn.Module] = {
    "square": Pair(lambda m, x: (g := m.gate(x)) * g + m.up(x) * x),
    "two_inputs": Pair(lambda m, x: F.silu(m.gate(x)) * m.up(x + 1)),
}
"""Products that are no gates, of which nothing is to be said."""

OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "asymmetric.*": {"weights": "uint4", "group_size": 64},
    "formats.up": {"group_size": 64},
    "zeros.up": {"weights": "uint4"},
}


@dataclass(frozen=True, kw_only=True)
class Lowered:
    graph: Graph
    executable: TritonExecutable
    decision: Decision
    inputs: list[Tensor]

    def layer(self, block: str, linear: str = "gate") -> Layer:
        """Of which a linear is the first, by the path of its module."""
        path = f"blocks.{block}.{linear}"
        (found,) = [
            layer for layer in self.executable.layers.found if module_path(layer.anchor).endswith(path)
        ]
        return found

    def observed(self) -> Mapping[Node, Any]:
        values: dict[Node, Any] = {}
        self.executable.run(self.inputs, observe=values.__setitem__)
        return values

    def call(self, layer: Layer) -> Call:
        (found,) = [call for call in self.executable.program(self.inputs).calls if call.layer is layer]
        return found


def lowered(blocks: Mapping[str, nn.Module], shape: tuple[int, ...]) -> Lowered:
    torch.manual_seed(0)
    model, x = Abreast(blocks).bfloat16().eval(), torch.randn(shape).bfloat16()
    recipe = qc.Recipe(name="few bits", weights="int4", activations=None, group_size=32)
    for pattern, changes in OVERRIDES.items():
        if pattern.split(".")[0] in blocks:
            recipe = recipe.overriding(f"blocks.{pattern}", **changes)
    decision = explain(model, x, recipe=recipe, target="cuda")
    graph = quantized(decision)
    return Lowered(
        graph=graph, executable=Triton("cuda").lower(graph), decision=decision,
        inputs=flatten_inputs(graph, (x,), {}),
    )  # fmt: skip


@cache
def taken() -> Lowered:
    return lowered({name: block for name, (block, _) in TAKEN.items()}, (3, 1, WIDTH))


@cache
def apart() -> Lowered:
    """Of which nothing is computed."""
    return lowered({**{name: block for name, (block, _) in APART.items()}, **OTHERS}, (3, 1, WIDTH))


def again(table: Table | None = None) -> Lowered:
    """The same, of which nothing was computed yet."""
    executable = Triton("cuda", table=table).lower(taken().graph)
    return replace(taken(), executable=executable)


# ---------------------------------------------------------------- one call


@pytest.mark.parametrize("name", TAKEN)
def test_a_gate_and_what_it_multiplies_are_one_call(name: str) -> None:
    layer, activation = taken().layer(name), TAKEN[name][1]
    problem = layer.problem
    assert layer.activation == activation and (layer.beside is None) == isinstance(TAKEN[name][0], Halves)
    assert (problem.N, problem.K, problem.gated) == (WIDTH, WIDTH, True)
    assert problem.zeros == (name == "asymmetric")
    assert (layer.residual is not None) == ("sum" in name)
    assert problem.heavy == (activation in ("silu", "gelu") or "sum" in name)
    left = {node.name for node in taken().executable.program(taken().inputs).graph.fx.nodes}
    assert not left & {*layer.names[1:], *(each.name for each in layer.tail)}


def test_all_are_within_their_bounds() -> None:
    found = taken().executable.verify(taken().inputs)
    assert {(each.kernel, each.max_lsb) for each in found} == {(GATED, 0)} and len(found) == len(TAKEN)
    assert not taken().executable.layers.apart
    held = [name for name, _ in taken().executable.constants if "silu.up" in name]
    assert [name.rpartition(".")[2] for name in held] == ["packed", "scales"], "both weights are held as one"


@pytest.mark.parametrize("name", ["gelu_turned", "asymmetric", "halves"])
def test_its_sums_are_those_of_calls_without_a_gate_and_are_rounded_once(name: str) -> None:
    sums_are_those_of_calls_without_a_gate(taken(), taken().layer(name))


def test_one_row_has_sums_in_an_order_of_their_own() -> None:
    first = replace(taken(), inputs=[taken().inputs[0][:1]])
    sums_are_those_of_calls_without_a_gate(first, first.layer("silu"))


def sums_are_those_of_calls_without_a_gate(found: Lowered, layer: Layer) -> None:
    values, call = found.observed(), found.call(layer)

    def alone(linear: Layer) -> Tensor:
        w = weight_of(linear.region, found.graph)
        bias = found.graph.tensors[str(linear.bias.target)] if linear.bias is not None else None
        x = values[call.x].flatten(0, -2)
        y: Tensor = ops.triton_weight_only_linear(
            x, w.codes, w.scales, w.zeros, bias, None, w.layout, False, "none", torch.float32
        )
        return y

    gate, up = torch.cat([alone(each) for each in layer.linears], 1).chunk(2, 1)
    assert torch.equal(values[call.node], (ACTIVATIONS[layer.activation](gate) * up).bfloat16())


@pytest.mark.parametrize("part", ["packed", "scales"])
@pytest.mark.parametrize("row", [3, WIDTH + 3])
def test_verify_finds_what_is_wrong_with_either_half(part: str, row: int) -> None:
    found = again()
    name = f"{stem(found.layer('silu'))}.{part}"
    wrong = found.executable.program(found.inputs).graph.tensors[name].clone()
    assert len(wrong) == 2 * WIDTH
    wrong[row, 1] = wrong[row, 1] * 2 if part == "scales" else wrong[row, 1] ^ 7
    found.executable.constants[name, CPU] = wrong
    off = [each.node for each in found.executable.verify(found.inputs) if each.max_lsb > 0]
    assert off == [found.layer("silu").anchor.name]


def test_decoded_weights_are_a_decision_for_both() -> None:
    problem = Linear(format="w4h_g32", N=WIDTH, K=WIDTH, heavy=True, gated=True)
    assert taken().layer("silu").problem == problem and str(problem) == "w4h_g32 192x192 bf16 heavy gated"
    found = again({problem: Decisions(names=("float",), measured=True)})
    layer, plan = found.layer("silu"), found.decision.plan
    (made,) = [each for each in found.executable.verify(found.inputs) if each.node == layer.anchor.name]
    assert (made.kernel, made.max_lsb) == ("float", 0)
    surprises = contract(plan, found.executable.execution(plan).layers, ()).surprises
    assert {*layer.names} <= {row.layer.node for row in surprises}


# ---------------------------------------------------------------- two calls


@pytest.mark.parametrize("name", APART)
def test_what_is_otherwise_is_computed_apart_and_it_is_said(name: str) -> None:
    block, why = APART[name]
    layers = [apart().layer(name, linear) for linear in dict(block.named_children())]
    assert not any(layer.problem.gated for layer in layers)
    assert apart().executable.layers.apart[layers[0].anchor.name] == why
    remarks = apart().executable.execution(apart().decision.plan).remarks
    assert [remark for remark in remarks if remark.endswith(f"computed apart: {why}")]


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_are_no_gates(name: str) -> None:
    layers = [apart().layer(name, linear) for linear in dict(OTHERS[name].named_children())]
    assert not any(layer.problem.gated for layer in layers)
    assert not {layer.anchor.name for layer in layers} & {*apart().executable.layers.apart}


# ---------------------------------------------------------------- what is told


def test_reports_name_what_really_executes() -> None:
    layer, plan = taken().layer("silu"), taken().decision.plan
    ran = taken().executable.execution(plan)
    assert ran.kernels == {GATED: len(TAKEN)}
    by_node = {each.node: each for each in ran.layers}
    gate, up = (by_node[name] for name in layer.names)
    assert (gate.precision, up.precision, gate.kernel, up.kernel) == ("int4", "int4", GATED, "")
    assert up.reason.startswith("computed with its gate, blocks.silu.gate")
    assert {by_node[each.name].reason for each in layer.tail} == {"merged into another kernel"}
    assert contract(plan, ran.layers, ran.stray).holds


def test_the_time_of_a_call_is_that_of_both() -> None:
    """Or else the speed guard would hold all of it against one of them."""
    spent = taken().executable.profile(taken().inputs)
    gate, up = taken().layer("silu").names
    assert spent[gate] == spent[up] > 0


def test_predictions_compare_it_with_the_best_that_floats_can_do() -> None:
    """One product of both, and one kernel that reads the sums and writes a number for two."""
    (found,) = taken().executable.predicted(taken().inputs)
    names = [name for block in TAKEN for name in taken().layer(block).names]
    assert sorted(found.nodes) == sorted(names) and found.why.count("384x192") == len(TAKEN)
    gate, M = Linear(format="w4h_g128", N=11008, K=4096, heavy=True, gated=True), 16
    sums = predict.product(M, 2 * gate.N, gate.K, "bf16", H100)
    behind = 3 * 2 * M * gate.N / H100.bandwidth + H100.launch
    assert predict.float_product(M, gate, H100) == pytest.approx(sums + behind)
    moved = predict.few_bit_bytes(gate) + 2 * M * (gate.K + gate.N)
    assert predict.few_bit_product(M, gate, H100) == pytest.approx(moved / H100.bandwidth + H100.launch)
    alone = Linear(format="w4h_g128", N=2 * gate.N, K=gate.K)
    assert predict.few_bit_bytes(gate) == predict.few_bit_bytes(alone)


def test_what_is_tuned_is_what_the_op_asks_for() -> None:
    asked = problem_of(taken().layer("asymmetric").problem, 16)
    assert asked.text == "weight_only_linear, w4h_g64 zeros gated, M 16, N 192, K 192, bf16, heavy"
    check(asked)
