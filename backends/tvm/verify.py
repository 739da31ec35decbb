"""A kernel of ours against the reference, on what lies on its planes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.backends.base import NodeDistance
from qcompiler.backends.reference import coded, compute_region, decoded
from qcompiler.backends.tvm.program import Call, Program, State
from qcompiler.ir import Graph

aten = torch.ops.aten
qc = torch.ops.qcompiler


def distance(call: Call, program: Program, state: State, graph: Graph) -> NodeDistance:
    """Compute a step again from what it was given; both results are compared in their own steps."""
    region, last = call.regions[0], call.regions[-1]
    more = [] if region.residual is None else [region.residual]
    given: Any = {node: read(node, program, state, graph) for node in (*region.anchor.all_input_nodes, *more)}
    args, kwargs = fx.map_arg((region.anchor.args, region.anchor.kwargs), given.__getitem__)
    residual = given.get(region.residual)
    # Floats even where they were codes once, whose place may be another's by now.
    addend = None if region.addend is None else held(region.addend, program, state, graph)
    wanted = compute_region(region, graph, args, kwargs, residual, addend)
    for following in call.regions[1:]:  # of one operand, which is what was computed
        (operand,) = following.operands
        known: Any = {
            node: constant(node, graph) for node in operand.all_input_nodes if node.op == "get_attr"
        }
        given = {operand: coded(operand, {**known, operand.args[0]: wanted}.__getitem__)}
        args, kwargs = fx.map_arg((following.anchor.args, following.anchor.kwargs), given.__getitem__)
        wanted = compute_region(following, graph, args, kwargs, None)
    found = held(last.result, program, state, graph)
    apart = (found.double() - wanted.double()).abs()
    if not last.returns_codes:  # floats have no steps of their own: those of their range
        apart = apart / (wanted.double().abs().max().clamp_min(1e-30) / 127)
    return NodeDistance(
        node=region.anchor.name, kernel=program.kernels[region.anchor.name], max_lsb=float(apart.max()),
        changed=float((apart > 0).double().mean()),
    )  # fmt: skip


def read(node: Node, program: Program, state: State, graph: Graph) -> Any:
    """What a kernel was given for a node: codes where it decodes them, else floats."""

    def known(value: Node) -> Any:
        return held(value, program, state, graph)

    return coded(node, known) if node.target is qc.dequantize.default else known(node)


def held(value: Node, program: Program, state: State, graph: Graph) -> Any:
    """A value as it lies where kernels read it."""
    if value.op == "get_attr":
        return constant(value, graph)
    if value.name in program.stores:
        return on_plane(value, program, state)
    if value not in state.values:  # a repetition that nobody has carried out
        assert isinstance(value.args[0], Node) and value.target is aten.expand.default
        return held(value.args[0], program, state, graph)
    return decoded(state.values[value])


def constant(node: Node, graph: Graph) -> Tensor:
    return graph.tensors[str(node.target)]


def on_plane(value: Node, program: Program, state: State) -> Tensor:
    """A copy of a value in its own shape."""
    shape = program.shapes[value]
    store = program.stores[value.name]
    pixels = store.inside(state.arrays[value.name])
    found = pixels.transpose(0, 3, 1, 2) if store.is_image else pixels
    return torch.from_numpy(np.array(found).reshape(shape))
