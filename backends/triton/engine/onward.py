"""What results of layers go on as, where other layers read them.

    codes                     where all that read them read codes, by a scale that is known
    floats and row maxima     where a quantizer would have to read its rows twice
    floats                    elsewhere

Which of these it is depends on what computes the layers, and so on the rows of a call.
"""

from collections.abc import Mapping, Sequence

from torch.fx import Node

from qcompiler.backends.triton.configurations import chosen as configured
from qcompiler.backends.triton.engine.candidates import Candidate
from qcompiler.backends.triton.engine.layer import Layer
from qcompiler.backends.triton.ops.quantize import padded
from qcompiler.ir import Graph
from qcompiler.numerics.row_codes import CODES

HELD = configured("quantize_rows", 80).constants["BLOCK"]  # codes of a row that is read once


def handed_on(layers: Sequence[Layer], chosen: Mapping[str, Candidate]) -> dict[Node, Layer]:
    """The `quantize` -> the layer that computes it, where its choice can, and all its readers read codes."""
    return {
        layer.onward: layer
        for layer in layers
        if layer.onward is not None
        and chosen[layer.anchor.name].onward is not None
        and all(chosen[each.anchor.name].reads_codes for each in layers if each.coded is layer.onward)
    }


def peaked(layers: Sequence[Layer], chosen: Mapping[str, Candidate]) -> set[Node]:
    """Results of layers whose rows a quantizer would read twice, and whose maxima are cheap to have at once.

    They are where an epilogue is heavy anyway: another one would get smaller tiles for it.
    """
    quantized = {
        each.x for each in layers
        if each.coded is None and each.problem.format in CODES and chosen[each.anchor.name].reads_codes
    }  # fmt: skip
    return {
        layer.result for layer in layers
        if layer.result in quantized and layer.problem.heavy and padded(layer.problem.N) > HELD
        and chosen[layer.anchor.name].peaked is not None
    }  # fmt: skip


def read(graph: Graph, ends: Mapping[Node, Layer], handed: Mapping[Node, Layer]) -> set[Node]:
    """What is computed still: what results follow from, where a layer reads floats, or codes handed on."""
    found: set[Node] = set(graph.inputs)
    waiting = [graph.output]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        layer = ends.get(node)
        reads = node.all_input_nodes if layer is None else reads_of(layer, handed)
        waiting += [each for each in reads if each is not None]
    return found


def reads_of(layer: Layer, handed: Mapping[Node, Layer]) -> tuple[Node | None, ...]:
    """Values of the graph; the biases of a gate and of what it multiplies become a constant."""
    bias = layer.bias if layer.beside is None else None
    return source(layer, handed), bias, layer.residual


def end(layer: Layer, handed: Mapping[Node, Layer]) -> Node:
    """The value of the graph that a layer computes."""
    return layer.onward if layer.onward is not None and layer.onward in handed else layer.result


def source(layer: Layer, handed: Mapping[Node, Layer]) -> Node:
    """The value of the graph that a layer is computed from."""
    return layer.coded if layer.coded is not None and layer.coded in handed else layer.x
