"""What results of layers go on as, where other layers read them.

    codes                     where all that read them read codes, by a scale that is known
    floats and row maxima     where a quantizer would have to read its rows twice
    floats                    elsewhere

Which of these it is depends on what computes the layers, and so on the rows of a call.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch.fx import Node

from qcompiler.backends.triton.configurations import chosen as configured
from qcompiler.backends.triton.decisions import Linear
from qcompiler.backends.triton.engine.candidates import Candidate
from qcompiler.backends.triton.engine.layer import Layer
from qcompiler.backends.triton.ops.quantize import padded
from qcompiler.ir import Graph
from qcompiler.numerics.row_codes import CODES

HELD = configured("quantize_rows", 80).constants["BLOCK"]  # codes of a row that is read once


def hands_on(maker: Candidate, readers: Iterable[Candidate]) -> bool:
    """Whether a product writes the codes that are read by a known scale: it can, and nobody reads floats."""
    return maker.onward is not None and all(reader.reads_codes for reader in readers)


def brings_maxima(maker: Candidate, readers: Iterable[Candidate]) -> bool:
    """Whether a product whose result `is_long` has the maxima of its rows beside it."""
    return maker.peaked is not None and any(reader.reads_codes for reader in readers)


def is_long(problem: Linear) -> bool:
    """Whether a quantizer would read rows of a result twice, of which maxima are cheap to have at once.

    They are where an epilogue is heavy anyway: another one would get smaller tiles for it.
    """
    return problem.format in CODES and problem.heavy and padded(problem.N) > HELD


def handed_on(layers: Sequence[Layer], chosen: Mapping[str, Candidate]) -> dict[Node, Layer]:
    """The `quantize` -> the layer that computes it, where its choice can, and all its readers read codes."""
    return {
        layer.onward: layer
        for layer in layers
        if layer.onward is not None
        and hands_on(
            chosen[layer.anchor.name],
            (chosen[each.anchor.name] for each in layers if each.coded is layer.onward),
        )
    }


def peaked(layers: Sequence[Layer], chosen: Mapping[str, Candidate]) -> set[Node]:
    """Results of layers that come with the maxima of their rows."""
    readers: dict[Node, list[Candidate]] = {}
    for each in layers:
        if each.coded is None and each.problem.format in CODES:
            readers.setdefault(each.x, []).append(chosen[each.anchor.name])
    return {
        layer.result
        for layer in layers
        if is_long(layer.problem) and brings_maxima(chosen[layer.anchor.name], readers.get(layer.result, ()))
    }


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
