"""Networks drawn at random, lowered and compared with the reference: to the last bit but for floats of ours.

Norms, attention and float functions take sums in another order, rotary positions round once less, and
activations are polynomials, so the reference goes on with ours, after each of them is found within its bound.
All that is behind them must then be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from qcompiler.api import explain
from qcompiler.backends.reference import Reference, ReferenceExecutable, decoded
from qcompiler.backends.tvm import Tvm, TvmExecutable
from qcompiler.backends.tvm.bounds import BOUNDS
from qcompiler.backends.tvm.floatpath.group import Group
from qcompiler.backends.tvm.floatpath.step import Floats
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.program import Call
from qcompiler.backends.tvm.verify import held
from qcompiler.ir import evaluate
from qcompiler.passes.decide import Decision
from qcompiler.proof import quantized
from qcompiler.target import find_target
from tests.backends.tvm.floatpath.example import exactly

TARGET = find_target("cpu", "tvm")
BATCHES = (1, 3)
KERNELS = ("norm", "activation", "rotary", "float attention")  # of floats


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
        assert torch.equal(engine([x])[0], going_on(reference, *floats(engine, [x]), [x])[0])
    found = engine.verify([x])
    assert found and all(each.max_lsb == 0 for each in found)
    kernels = {layer.node: layer.kernel for layer in engine.execution(decision.plan).layers}
    return Lowered(decision=decision, engine=engine, kernels=kernels, verified=len(found))


@torch.no_grad()
def floats(engine: TvmExecutable, inputs: Sequence[Tensor]) -> tuple[dict[Node, Tensor], dict[Node, Group]]:
    """What kernels of floats compute (floats, codes, or both), and groups of ops on floats."""
    ready, groups = engine.ready(inputs), {}
    state, found = ready.state(engine.given(inputs)), {}
    for step, run in ready.each():
        run(state)
        if isinstance(step, Call) and ready.program.kernels.get(step.node.name) in KERNELS:
            written = [node for node in (step.node, *step.node.users) if node.name in step.arguments]
            found.update({node: held(node, ready.program, state, engine.graph) for node in written})
        if isinstance(step, Floats):
            groups.update(dict.fromkeys(step.group.outputs, step.group))
            found.update({node: state.values[node] for node in step.group.outputs})
    return found, groups


@torch.no_grad()
def going_on(
    reference: ReferenceExecutable, ours: Mapping[Node, Tensor], groups: Mapping[Node, Group],
    inputs: Sequence[Tensor],
) -> list[Tensor]:  # fmt: skip
    """The results of the reference that goes on with floats of ours, each within its bound."""

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
            exact, by_number = BOUNDS[node.target](node, lambda read: decoded(seen[read]))
            assert ((ours[node] - exact).abs() <= by_number).all()
        else:  # of floats of ours the same codes; of torch's, which may lie beyond a tie, those beside them
            wanted = reference.compute(node, args, kwargs, values)
            assert (ours[node].int() - wanted.int()).abs().max() <= (node.args[0] not in ours)
        return ours[node]

    return [decoded(found) for found in evaluate(reference.graph, inputs, evaluate_node=compute)]
