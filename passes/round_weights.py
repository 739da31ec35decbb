"""Round every weight in the best of several ways, measured where it counts: at the output of its layer.

linear(X, W)  -->  linear(X, W')        W' on the grid of its format, ||(W - W') X|| least of the candidates

X is what the rounded layers before make of the calibration data. `nearest` is always a candidate, so that no
layer gets worse by being rounded with care. W' replaces W in the graph; its scales are read back from it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label, spec
from qcompiler.numerics import IntFormat, QuantParams, dequantize, parse_format, quantize
from qcompiler.passes.abreast import Moments, run_abreast
from qcompiler.passes.gptq import compensated
from qcompiler.passes.grid import shortened
from qcompiler.passes.groups import groups_of
from qcompiler.passes.hqq import half_quadratic
from qcompiler.passes.smooth import weight_of
from qcompiler.passes.weights import least_error, weight_params
from qcompiler.plan import Plan, WeightSpec
from qcompiler.progress import Tell, silent

CLIPS = tuple(1 - step / 20 for step in range(1, 11))  # 0.95 .. 0.5 of the full range


# ---------------------------------------------------------------- candidates

Candidate = Callable[[Tensor, WeightSpec, Moments], Tensor | None]
"""A weight, its spec, the moments of its input -> the weight on the grid; None where it cannot be done."""


def nearest(weight: Tensor, planned: WeightSpec, _: Moments) -> Tensor:
    return rounded(weight, weight_params(weight, planned))


def hqq(weight: Tensor, planned: WeightSpec, _: Moments) -> Tensor:
    return rounded(weight, half_quadratic(weight, weight_params(weight, full_range(planned))))


def clip(weight: Tensor, planned: WeightSpec, moments: Moments) -> Tensor:
    return rounded(weight, clipped(weight, planned, moments))


def gptq(weight: Tensor, planned: WeightSpec, moments: Moments) -> Tensor | None:
    if moments.rows < weight.shape[1]:
        return None  # H has no full rank: what is compensated on these rows would be lost on others
    return compensated(weight, moments.second, lambda part: shortened(weight_params(part, planned)))


def gptq_ordered(weight: Tensor, planned: WeightSpec, moments: Moments) -> Tensor | None:
    """Columns by falling power, on the scales of the clip search."""
    if moments.rows < weight.shape[1]:
        return None
    return compensated(
        weight, moments.second, lambda part: shortened(clipped(part, planned, moments)), ordered=True
    )


CANDIDATES: Mapping[str, Candidate] = {
    "nearest": nearest, "hqq": hqq, "clip": clip, "gptq": gptq, "gptq-ordered": gptq_ordered,
}  # fmt: skip

# What a recipe asks for -> what is tried. AWQ is a scaling of channels and then a search for clips.
METHODS: Mapping[str, tuple[str, ...]] = {
    "nearest": ("nearest",),
    "hqq": ("nearest", "hqq"),
    "awq": ("nearest", "clip"),
    "gptq": ("nearest", "gptq", "gptq-ordered"),
    "best": tuple(CANDIDATES),
}


def rounded(weight: Tensor, params: QuantParams) -> Tensor:
    on_grid = shortened(params)
    return dequantize(quantize(weight, on_grid), on_grid)


def full_range(planned: WeightSpec) -> WeightSpec:
    return replace(planned, observer="minmax")


def clipped(weight: Tensor, planned: WeightSpec, moments: Moments) -> QuantParams:
    """For every group the range of least output error, its inputs alone: e H_gg e^T (AWQ's clip search)."""
    full = weight_params(weight, full_range(planned))
    size = planned.group_size or weight.shape[1]
    starts = range(0, weight.shape[1], size)
    blocks = torch.stack([moments.second[at : at + size, at : at + size] for at in starts]).float()

    def measure(error: Tensor, params: QuantParams) -> Tensor:
        parts = groups_of(error, params).reshape(len(error), -1, size)
        cost = (torch.einsum("ogi,gij->ogj", parts, blocks) * parts).sum(-1)
        return cost.reshape(params.scale.shape)

    return least_error(weight, full, measure, CLIPS)


# ---------------------------------------------------------------- the graph


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounded:
    """How one layer was rounded: the method kept, the SQNR of its output by each in dB, the weight before."""

    method: str
    scores: dict[str, float]
    constant: str  # the name of the rounded weight in the graph
    before: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounding:
    """A graph whose weights are on their grids, and how each came there."""

    graph: Graph
    layers: Mapping[str, Rounded]


def round_weights(
    graph: Graph, plan: Plan, batches: Iterable[Sequence[Any]], *, tell: Tell = silent
) -> Rounding:
    """Round the weight of every linear whose spec asks for more than nearest, first layers first."""
    draft = Draft(graph)
    wanted = {spec.layer: spec for spec in plan.weights if spec.method != "nearest"}
    nodes = {node.name: node for node in draft.nodes}
    for name in list(wanted):
        obstacle = cannot_round(nodes[name], wanted[name])
        if obstacle:
            draft.note("round", label(nodes[name]), "refused", obstacle)
            del wanted[name]
    found: dict[str, tuple[str, dict[str, float], Tensor]] = {}
    latest: dict[Node, Moments] = {}  # linears that read one value mostly follow one another

    def reached(node: Node, inputs: Sequence[Tensor]) -> Tensor | None:
        if node.name not in wanted:
            return None
        tell("rounding weights", len(found), len(wanted))
        source = node.args[0]
        assert isinstance(source, Node)
        if source not in latest:
            latest.clear()
            latest[source] = Moments.of(inputs)
        found[node.name] = best_of(weight_of(draft, node), wanted[node.name], latest[source])
        return found[node.name][2]

    run_abreast(graph, batches, reached)
    layers = {}
    for name, (method, scores, weight) in found.items():
        node, before = nodes[name], weight_of(draft, nodes[name])
        old = node.args[1]
        assert isinstance(old, Node)
        constant = draft.constant(f"{old.target}.rounded", weight, before=node)
        node.replace_input_with(old, constant)
        figures = ", ".join(f"{key} {value:.2f}" for key, value in scores.items())
        missing = [key for key in METHODS[wanted[name].method] if key not in scores]
        if missing:
            reason = f"{' and '.join(missing)} need as many rows of data as the layer has inputs"
            draft.note("round", label(node), "refused", reason)
        draft.note("round", label(node), "applied", f"{method} of {figures} dB")
        layers[name] = Rounded(method=method, scores=scores, constant=str(constant.target), before=before)
    return Rounding(graph=draft.finish(), layers=layers)


def cannot_round(node: Node, planned: WeightSpec) -> str:
    if node.target is not torch.ops.aten.linear.default:
        return "only the weights of linears are rounded with care"
    if not isinstance(parse_format(planned.format), IntFormat):
        return f"{planned.format} is no integer format"
    weight = spec(arguments(node)["weight"])
    if weight is not None and weight.dtype != torch.float32:
        kind = str(weight.dtype).removeprefix("torch.")
        return f"it is in {kind}, which has no room for a grid's values, so each goes to the nearest code"
    if planned.limit:
        return "this CPU bears no full codes, and a compensated weight may need them"
    return ""


def best_of(weight: Tensor, planned: WeightSpec, moments: Moments) -> tuple[str, dict[str, float], Tensor]:
    """The candidate of least output error, and the SQNR of all in dB."""
    signal = moments.power(weight)
    weights = {name: CANDIDATES[name](weight, planned, moments) for name in METHODS[planned.method]}
    tried = {name: tensor for name, tensor in weights.items() if tensor is not None}
    errors = {name: moments.power(weight - tensor) for name, tensor in tried.items()}
    best = min(errors, key=errors.__getitem__)
    return best, {name: decibel(signal, error) for name, error in errors.items()}, tried[best]


MOST_DB = 150.0


def decibel(signal: float, noise: float) -> float:
    """At most MOST_DB, which is what no noise at all counts as: float32 tells no finer."""
    if signal <= 0:
        return 0.0
    return min(10 * math.log10(signal / noise), MOST_DB) if noise > 0 else MOST_DB
