"""Linears that hold both a gate and what it multiplies: the halves of one result.

    y = linear(x, [G; U], [b; c])        g, u = the halves of y        act(g) u        one Layer of N outputs

Models of some families are written so, and their weight has 2 N rows in the order that kernels read.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch.fx import Node

from qcompiler.backends.triton.engine.gates import READ, factors, one_of, unknown
from qcompiler.backends.triton.engine.layer import Layer, activation_behind, only_reader
from qcompiler.backends.triton.layouts import ROWS
from qcompiler.ir import Graph, arguments, spec

aten = torch.ops.aten

SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)


def halved(layers: Sequence[Layer], graph: Graph) -> tuple[list[Layer], dict[str, str]]:
    """The layers with the product of two halves as theirs, and why others are not: anchor's name -> why."""
    of = {
        half: layer for layer in layers if layer.is_weight_only and not layer.tail for half in halves(layer)
    }
    gates, apart = dict[Layer, Layer](), dict[str, str]()
    for product in graph.fx.nodes:
        found = dict(factors(product, of))
        both = {of[half] for half in found}
        if len(found) != 2 or len(both) != 1:
            continue
        (layer,) = both
        why = next(obstacles(layer, found), None)
        if why is None:
            gates[layer] = gate_of(product, layer)
        else:
            apart[layer.anchor.name] = why
    return [gates.get(layer, layer) for layer in layers], apart


def halves(layer: Layer) -> tuple[Node, ...]:
    """Both halves of a result along its last axis, where nobody reads anything else of it; else nothing."""
    readers = [*layer.result.users]
    split = readers[0] if len(readers) == 1 and readers[0].target in SPLITS else None
    places = {place(part, layer.problem.N): part for part in (readers if split is None else split.users)}
    return (places[0], places[1]) if {*places} == {0, 1} else ()


def place(part: Node, N: int) -> int | None:
    """Which half of [..., N] a part is; None where it is none."""
    found = spec(part)
    if found is None or not found.shape or found.shape[-1] != N / 2:
        return None
    if part.target is operator.getitem:
        return int(part.args[1])  # type: ignore[arg-type]  # of a split
    given = arguments(part) if part.target is aten.slice.Tensor else {"step": None}
    if given["step"] != 1:
        return None
    start = given["start"] or 0
    from_the_left = start + N if isinstance(start, int) and start < 0 else start
    return {0: 0, N // 2: 1}.get(from_the_left)


def obstacles(layer: Layer, found: Mapping[Node, Node]) -> Iterator[str]:
    """Why a call cannot compute the product as well, in sentences; none where it can.

    found: a half -> what is multiplied.
    """
    first, second = halves(layer)
    _, turns = activation_behind(first)
    if any(only_reader(each) is None for each in (first, second, *turns)):
        yield READ
    if found[second] is not second:
        yield "its second half is not multiplied as it is, and kernels activate the first"
    if found[first] not in (first, *turns):
        yield unknown(found[first])
    if layer.problem.N // 2 % ROWS:
        yield f"its halves have {layer.problem.N // 2} outputs, and kernels take {ROWS} at a time"


def gate_of(product: Node, layer: Layer) -> Layer:
    """The layer with the product of its halves, and what is added behind that."""
    first, second = halves(layer)
    activation, turns = activation_behind(first)
    split = (first.all_input_nodes[0],) if first.target is operator.getitem else ()
    half = replace(layer.problem, N=layer.problem.N // 2)
    tail = (*split, first, second, *turns)
    return one_of(product, replace(layer, activation=activation, tail=tail, problem=half), None)
