"""A kernel of ours against the reference, on what lies on its planes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.backends.reference import compute_region
from qcompiler.backends.reference.kernels import Codes
from qcompiler.backends.tvm.program import Call, Program, State
from qcompiler.ir import Graph, arguments


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """How far one kernel is from the reference: the largest distance in LSB, and the share that differs."""

    node: str
    kernel: str
    max_lsb: float
    changed: float
    allowed: int = 0


def distance(call: Call, program: Program, state: State, graph: Graph) -> KernelDistance:
    """Compute a step again from the same codes; both results are compared in their own steps."""
    region = call.region
    assert region is not None
    rows = region.row.formula == "linear"
    given = {
        node: codes_of(node, program, state, graph, rows=rows)
        for node in region.anchor.all_input_nodes
        if node.op == "call_function"
    }
    added = region.residual
    residual = None if added is None else codes_of(added, program, state, graph, rows=rows)
    known: Any = given
    args, kwargs = fx.map_arg((region.anchor.args, region.anchor.kwargs), known.__getitem__)
    wanted = compute_region(region, graph, args, kwargs, residual)
    found = on_plane(region.result.name, program, state, rows=rows)
    apart = (found.double() - wanted.double()).abs()
    if not region.returns_codes:  # floats have no steps of their own: those of their range
        apart = apart / (wanted.double().abs().max().clamp_min(1e-30) / 127)
    return KernelDistance(
        node=region.anchor.name, kernel=program.kernels[region.anchor.name], max_lsb=float(apart.max()),
        changed=float((apart > 0).double().mean()),
    )  # fmt: skip


def codes_of(decoded: Node, program: Program, state: State, graph: Graph, *, rows: bool) -> Codes:
    """What a dequantize node reads: constants, or what is on a plane."""
    given = arguments(decoded)

    def held(node: Node) -> Any:
        if node.op == "get_attr":
            return graph.tensors[str(node.target)]
        return on_plane(node.name, program, state, rows=rows)

    return Codes(
        values=held(given["q"]), scale=held(given["scale"]), zero_point=held(given["zero_point"]),
        format=given["format"], axis=given["axis"], block=given["block"],
    )  # fmt: skip


def on_plane(name: str, program: Program, state: State, *, rows: bool) -> Tensor:
    """[N, C, H, W], or rows [R, K]."""
    pixels = program.stores[name].inside(state.arrays[name])
    found = pixels.reshape(-1, pixels.shape[-1]) if rows else pixels.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.array(found))
