"""A kernel of ours against the reference, on what lies on its planes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.backends.base import NodeDistance
from qcompiler.backends.reference import coded, compute_region, decoded
from qcompiler.backends.reference.kernels import weight_only_linear
from qcompiler.backends.tvm.bounds import BOUNDS
from qcompiler.backends.tvm.fewbits import CODES, row_of
from qcompiler.backends.tvm.gates import columns_of
from qcompiler.backends.tvm.program import Call, Program, State
from qcompiler.ir import Graph, arguments
from qcompiler.passes.fuse import addend
from qcompiler.target import Target

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


def distance_of_floats(call: Call, program: Program, state: State, graph: Graph) -> NodeDistance | None:
    """How far a kernel of floats is beyond the bound that it states; None if it states none that is known.

    Codes that it makes are those of the floats that it writes, else of floats within the bound:

        |y - exact| - bound, at least 0        quantize(exact - bound) <= q <= quantize(exact + bound)
    """

    def known(value: Node) -> Tensor:
        source, first = columns_of(value)
        whole: Tensor = held(source, program, state, graph)
        return whole if source is value else whole[..., first : first + program.shapes[value][-1]]

    node = call.node
    made = [user for user in node.users if user.name in call.arguments and user.target is qc.quantize.default]
    has_floats = node.name in call.arguments
    if node.target not in BOUNDS or node.name not in program.kernels or not (has_floats or made):
        return None
    exact, bound = BOUNDS[node.target](node, known)
    low, high, beyond = exact - bound, exact + bound, []
    if has_floats:
        floats = known(node)
        beyond.append(outside(floats, low, high) / (exact.abs().max().clamp_min(1e-30) / 127))
        low = high = floats
    for codes in made:
        given = arguments(codes)
        step = [constant(given[name], graph) for name in ("scale", "zero_point")]
        ends = (qc.quantize.default(x.float(), *step, given["format"]) for x in (low, high))
        beyond.append(outside(held(codes, program, state, graph), *ends))
    return farthest(node, program, torch.cat([part.flatten() for part in beyond]))


def distance_of_few_bits(
    call: Call, program: Program, state: State, graph: Graph, sources: Mapping[str, Tensor], target: Target
) -> NodeDistance | None:
    """A linear with weights of few bits against the reference: equal; None for any other call.

    sources: by name, what became codes by row and block, whose floats may be gone by now.
    """
    node, row = call.node, row_of(call.node, target)
    result = next((value for value in (node, *node.users) if value.name == call.arguments[-1]), None)
    if row is None or result is None:
        return None
    given = arguments(node)
    weight = coded(given["weight"], lambda value: constant(value, graph))
    bias = None if given["bias"] is None else constant(given["bias"], graph)
    x = sources[given["input"].name]
    block = weight.block or row.default_block
    wanted = weight_only_linear(x, weight, bias, bits=row.activation_bits, block=block)
    if result is not node:
        added = addend(node, result)
        assert added is not None
        wanted = wanted + held(added, program, state, graph)
    apart = outside(held(result, program, state, graph), wanted, wanted)
    return farthest(node, program, apart / (wanted.double().abs().max().clamp_min(1e-30) / 127))


def rounded_sources(
    call: Call, known: Mapping[str, Tensor], program: Program, state: State, graph: Graph
) -> dict[str, Tensor]:
    """The floats that a call makes codes by row and block of, by name."""
    names = [name.split(CODES)[0] for name in call.arguments if CODES in name]
    return {name: held(graph.by_name[name], program, state, graph) for name in names if name not in known}


def outside(found: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far numbers are from an interval; 0 where both are NaN or the same infinity."""
    x, a, b = found.double(), low.double(), high.double()
    same = (x == a) | (x == b) | (x.isnan() & a.isnan() & b.isnan())
    return torch.where(same, 0.0, torch.maximum(a - x, x - b).clamp_min(0))


def farthest(node: Node, program: Program, apart: Tensor) -> NodeDistance:
    return NodeDistance(
        node=node.name, kernel=program.kernels[node.name], max_lsb=float(apart.max()),
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
