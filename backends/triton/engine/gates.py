"""Linears that gate others: two layers that read one value become one, whose kernel multiplies both sums.

    act(x Gᵀ + b) (x Uᵀ + c)        GLU and its kin (arXiv 2002.05202); with SiLU that of LLaMA

    linear(x, G, b)  ->  act  ->  mul  <-  linear(x, U, c)        one Layer, `beside` which is that of U

The ops of codes of 8 bits know no gate; those of weights of few bits do.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

import torch
from torch.fx import Node

from qcompiler.backends.triton.engine.layer import Layer, only_reader, sum_behind
from qcompiler.backends.triton.ops.linear import ACTIVATIONS, is_heavy
from qcompiler.backends.triton.ops.schedule import named
from qcompiler.ir import Graph, spec
from qcompiler.rewrite.traits import Trait, has

aten = torch.ops.aten


def gated(layers: Sequence[Layer], graph: Graph) -> tuple[list[Layer], dict[str, str]]:
    """The layers with every such pair as one, and why others of one value stay apart: gate's name -> why."""
    results = {layer.result: layer for layer in layers if layer.is_weight_only}
    gates, multiplied, apart = dict[Layer, Layer](), set[Layer](), dict[str, str]()
    for product in graph.fx.nodes:
        found = [(results[source], operand) for source, operand in factors(product, results)]
        if not found or found[0][0] is found[1][0]:
            continue
        (gate, _), (beside, _) = sorted(found, key=lambda each: is_plain(*each))
        if gate.x is not beside.x:  # two values multiplied, of which none gates the other
            continue
        why = next(obstacles(product, gate, beside), None)
        if why is not None:
            apart[gate.anchor.name] = why
            continue
        gates[gate] = one_of(product, gate, beside)
        multiplied.add(beside)
    return [gates.get(layer, layer) for layer in layers if layer not in multiplied], apart


def factors(product: Node, sources: Container[Node]) -> list[tuple[Node, Node]]:
    """Where a product multiplies two sources, or what ops of one number at a time make of them: both.

    Each is a source and what is multiplied.
    """
    if product.target is not aten.mul.Tensor:
        return []
    found = [(source_of(operand, sources), operand) for operand in product.all_input_nodes]
    return found if len(found) == 2 and all(source in sources for source, _ in found) else []


def source_of(operand: Node, sources: Container[Node]) -> Node:
    reads = operand.all_input_nodes
    is_of_one = operand not in sources and len(reads) == 1 and has(operand, Trait.ELEMENTWISE)
    return reads[0] if is_of_one else operand


def is_plain(layer: Layer, operand: Node) -> bool:
    """Whether a factor is a linear as it is, without an activation: where both are, the first is the gate."""
    return layer.activation == "none" and operand is layer.result


def unknown(op: Node) -> str:
    """Why no kernel takes an op for an activation."""
    known = ", ".join(name for name in ACTIVATIONS if name != "none")
    return f"no kernel has {op.target} as it is called here for an activation, but {known}"


READ = "the result of one of the two is read elsewhere, too"


def obstacles(product: Node, gate: Layer, beside: Layer) -> Iterator[str]:
    """Why one call cannot compute both, in sentences; none where it can."""
    both = (gate, beside)
    results = [layer.result for layer in both]
    formats = [layer.problem.format for layer in both]
    if any(only_reader(result) is None for result in results):
        yield READ
    yield from (unknown(operand) for operand in product.all_input_nodes if operand not in results)
    if beside.activation != "none":
        yield "both are activated"
    if any(layer.residual is not None for layer in both):
        yield "something is added to one of the two before"
    if formats[0] != formats[1]:
        yield f"their weights are {' and '.join(formats)}; plan one format and group for both"
    if gate.problem.zeros != beside.problem.zeros:
        yield "one of their weights has zero points, and the other has none"
    if (gate.bias is None) != (beside.bias is None):
        yield "one of the two has a bias, and the other has none"
    if any(layer.bias is not None and layer.bias.op != "get_attr" for layer in both):
        yield "their biases are no constants"


def one_of(product: Node, gate: Layer, beside: Layer | None) -> Layer:
    """The gate with what it multiplies, and what is added behind that."""
    residual, adds = sum_behind(product)
    tail = (*gate.tail, product, *adds)
    held = spec(tail[-1])
    assert held is not None
    heavy = is_heavy(gate.activation, residual)
    return replace(
        gate, beside=beside, residual=residual, tail=tail, dtype=held.dtype,
        problem=replace(gate.problem, out=named(held.dtype), heavy=heavy, gated=True),
    )  # fmt: skip
