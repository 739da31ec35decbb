"""Bias correction: take the mean error of rounded weights out of the bias (arXiv 1906.04721, section 4.2).

b  -->  b - (W' - W) E[x]        W' = D(Q(W)), E[x] per input channel from calibration
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label, spec
from qcompiler.numerics import dequantize, quantize
from qcompiler.passes.calibrate import Ranges, Statistics
from qcompiler.passes.weights import weight_params
from qcompiler.plan import Plan


def correct_bias(
    graph: Graph, plan: Plan, ranges: Ranges, exact: Mapping[str, Tensor] | None = None
) -> Graph:
    """Correct every planned layer whose input was observed.

    exact: the weights of layers that hold rounded ones in the graph already.
    """
    draft = Draft(graph)
    nodes = {node.name: node for node in draft.nodes}
    for planned in plan.weights:
        node = nodes[planned.layer]
        given = arguments(node)
        source = node.args[0]
        statistics = ranges.get(source.name) if isinstance(source, Node) else None
        if statistics is None or not channels_observed(statistics, node):
            draft.note("correct-bias", label(node), "refused", "its input was not observed per channel")
            continue
        weight = draft.tensors[str(given[planned.argument].target)]
        params = weight_params(weight, planned)
        wanted = (exact or {}).get(planned.layer, weight)
        shift = mean_error(dequantize(quantize(weight, params), params) - wanted, statistics.mean, given)
        set_bias(draft, node, shift)
        draft.note("correct-bias", label(node), "applied")
    return draft.finish()


Correction = tuple[str, Tensor]
"""The constant that holds a corrected bias, and what it was before (zeros for none)."""


def corrections(before: Graph, after: Graph, plan: Plan) -> dict[str, Correction]:
    """Layer -> correction, so that a layer that goes back to float can have its own bias back."""
    found: dict[str, Correction] = {}
    for planned in plan.weights:
        old, new = (arguments(graph.by_name[planned.layer]).get("bias") for graph in (before, after))
        if isinstance(new, Node) and new.op == "get_attr" and getattr(old, "target", None) != new.target:
            corrected = after.tensors[str(new.target)]
            own = before.tensors[str(old.target)] if isinstance(old, Node) else torch.zeros_like(corrected)
            found[planned.layer] = (str(new.target), own)
    return found


def channels_observed(statistics: Statistics, layer: Node) -> bool:
    """Whether the means were taken along the axis that this layer contracts."""
    assert isinstance(layer.args[0], Node)
    found = spec(layer.args[0])
    assert found is not None
    rank, axis = len(found.shape), 1 if "conv" in str(layer.target) else -1
    return statistics.axis % rank == axis % rank


def mean_error(error: Tensor, mean: Tensor, given: dict[str, object]) -> Tensor:
    """(W' - W) E[x] per output channel; a kernel's positions all see the same mean."""
    per_input = error.flatten(2).sum(2) if error.dim() > 2 else error
    groups = int(str(given.get("groups", 1)))
    means = mean.reshape(groups, 1, -1).expand(-1, per_input.shape[0] // groups, -1).reshape(per_input.shape)
    return (per_input * means).sum(1)


def set_bias(draft: Draft, node: Node, shift: Tensor) -> None:
    old = draft.tensor(arguments(node).get("bias"))
    corrected = -shift if old is None else old - shift
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index("bias")
    args, held = list(node.args), spec(node)
    assert held is not None
    args[position] = draft.constant(f"{node.name}.bias.corrected", corrected.to(held.dtype), before=node)
    node.args = tuple(args)
