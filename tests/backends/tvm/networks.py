"""Networks drawn at random, lowered and compared with the reference: to the last bit but for floats of ours.

Norms and float functions take sums in another order, and activations are polynomials, so the reference goes
on with ours, after each of them is found within its bound. All that is behind them must then be equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from qcompiler.api import explain
from qcompiler.backends.reference import Reference, ReferenceExecutable, decoded
from qcompiler.backends.tvm import Tvm, TvmExecutable
from qcompiler.backends.tvm.floatpath.group import Group
from qcompiler.backends.tvm.floatpath.step import Floats
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.program import Call
from qcompiler.backends.tvm.verify import on_plane
from qcompiler.ir import arguments, evaluate
from qcompiler.passes.decide import Decision
from qcompiler.proof import quantized
from qcompiler.target import find_target
from tests.backends.tvm.floatpath.example import exactly
from tests.backends.tvm.test_activation import allowed
from tests.backends.tvm.test_activation import exact as exactly_of

aten = torch.ops.aten
NORMS = (aten.layer_norm.default, aten.rms_norm.default)
TARGET = find_target("cpu", "tvm")
BATCHES = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A network on our kernels that has passed, and what computes its planned layers."""

    decision: Decision
    engine: TvmExecutable
    kernels: Mapping[str, str]
    verified: int  # calls of kernels


def equal_to_the_reference(
    network: nn.Module, data: Callable[[int, int], Tensor], isa: Isa | None = None, *, recipe: str = "int8",
    batches: Sequence[int] = BATCHES,
) -> Lowered:  # fmt: skip
    """`data`: a batch of so many samples, by a seed."""
    calibration = None if recipe == "int8-dynamic" else [data(2, 1)]
    decision = explain(network.eval(), data(2, 0), calibration=calibration, recipe=recipe, target=TARGET)
    graph = quantized(decision)
    engine = Tvm(TARGET, isa=None if isa is None else isa.name).lower(graph, threads=1)
    reference = Reference(TARGET).lower(graph)
    assert isinstance(engine, TvmExecutable)
    for count in batches:
        x = data(count, 2)
        assert torch.equal(engine([x])[0], going_on(reference, *floats(engine, x), x))
    found = engine.verify([x])
    assert found and all(each.max_lsb == 0 for each in found)
    kernels = {layer.node: layer.kernel for layer in engine.execution(decision.plan).layers}
    return Lowered(decision=decision, engine=engine, kernels=kernels, verified=len(found))


@torch.no_grad()
def floats(engine: TvmExecutable, x: Tensor) -> tuple[dict[Node, Tensor], dict[Node, Group]]:
    """What norms and activations of ours compute (floats, codes, or both), and groups of ops on floats."""
    ready, groups = engine.ready([x]), {}
    state, found = ready.state(engine.given([x])), {}
    for step, run in ready.each():
        run(state)
        if isinstance(step, Call) and ready.program.kernels.get(step.node.name) in ("norm", "activation"):
            written = [node for node in (step.node, *step.node.users) if node.name in step.arguments]
            found.update({node: on_plane(node, ready.program, state) for node in written})
        if isinstance(step, Floats):
            groups.update(dict.fromkeys(step.group.outputs, step.group))
            found.update({node: state.values[node] for node in step.group.outputs})
    return found, groups


@torch.no_grad()
def going_on(
    reference: ReferenceExecutable, ours: Mapping[Node, Tensor], groups: Mapping[Node, Group], x: Tensor
) -> Tensor:
    """The result of the reference that goes on with floats of ours, each within its bound."""

    seen: dict[Node, Any] = {}  # also what nobody reads any more

    def compute(node: Node, args: Any, kwargs: dict[str, Any], values: Mapping[Node, Any]) -> Any:
        seen.update(values)
        if node not in ours:
            return reference.compute(node, args, kwargs, values)
        if node in groups:
            if node is groups[node].nodes[-1]:  # now all that the group reads is known
                bounds = zip(groups[node].outputs, exactly(groups[node], seen), strict=True)
                assert all(float((ours[y] - exact).abs().max()) <= far for y, (exact, far) in bounds)
        elif ours[node].dtype == torch.float32:
            exact, by_number = (norm_exactly if node.target in NORMS else activation_exactly)(node, seen)
            assert ((ours[node] - exact).abs() <= by_number).all()
        else:  # of floats of ours the same codes; of torch's, which may lie beyond a tie, those beside them
            wanted = reference.compute(node, args, kwargs, values)
            assert (ours[node].int() - wanted.int()).abs().max() <= (node.args[0] not in ours)
        return ours[node]

    (found,) = evaluate(reference.graph, [x], evaluate_node=compute)
    result: Tensor = decoded(found)
    return result


def norm_exactly(node: Node, values: Mapping[Node, Any]) -> tuple[Tensor, Tensor]:
    """A norm of what it was given in float64, and how far from it `kernels/norm.py` promises to be."""
    given: dict[str, Any] = {
        name: decoded(values[held]) if isinstance(held, Node) else held
        for name, held in arguments(node).items()
    }
    x, axes = given["input"].double(), given["normalized_shape"]
    gain, bias = (None if given.get(key) is None else given[key].double() for key in ("weight", "bias"))
    centered = node.target is aten.layer_norm.default
    epsilon = torch.finfo(torch.float32).eps if given["eps"] is None else given["eps"]
    exact = F.layer_norm(x, axes, gain, bias, epsilon) if centered else F.rms_norm(x, axes, gain, epsilon)
    around = x - x.mean(-1, keepdim=True) if centered else x
    ratio = (around.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    size = (1.0 if gain is None else gain.abs()) * (1 + x.abs().amax(-1, keepdim=True) * ratio)
    return exact, 4 * 2.0**-24 * (size if bias is None else size + bias.abs())


def activation_exactly(node: Node, values: Mapping[Node, Any]) -> tuple[Tensor, Tensor]:
    """GELU in float64, or what SiLU gates, and how far from it `kernels/activation.py` promises to be."""
    inner, factor = node, None
    for a, b in itertools.permutations(node.args, 2) if node.target is aten.mul.Tensor else ():
        if isinstance(a, Node) and isinstance(b, Node) and a.target is aten.silu.default:
            inner, factor = a, decoded(values[b]).double()
    given = arguments(inner)
    function = "silu" if inner is not node else "gelu_tanh" if given["approximate"] == "tanh" else "gelu"
    x = decoded(values[given["self"]])
    exact, far = exactly_of(function, x), allowed(function, x)
    if factor is None:
        return exact, far
    return exact * factor, far * factor.abs() + 2.0**-24 * (exact * factor).abs() + 2.0**-149
