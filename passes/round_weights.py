"""Round every weight in the best of several ways, measured where it counts: at the output of its layer.

linear(X, W)  -->  linear(X, W')        W' on the grid of its format, ||(W - W') X|| least of the candidates

X is what the rounded layers before make of the calibration data. `nearest` is always a candidate, so that no
layer gets worse by being rounded with care. W' replaces W in the graph; its scales are read back from it.

All is computed in float32 and float64. A weight in halves holds W' rounded once more, which is not what
kernels multiply: the error that counts is that of the steps and codes which are read back from it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label, spec
from qcompiler.numerics import IntFormat, QuantParams, fake_quantize, parse_format
from qcompiler.passes.abreast import Moments, moments_at, run_abreast
from qcompiler.passes.gptq import compensated
from qcompiler.passes.grid import HELD, find_grid, shortened
from qcompiler.passes.groups import groups_of
from qcompiler.passes.hqq import half_quadratic
from qcompiler.passes.smooth import weight_of
from qcompiler.passes.weights import granularity_of, least_error, weight_params
from qcompiler.plan import Plan, WeightSpec
from qcompiler.progress import Tell, silent

CLIPS = tuple(1 - step / 20 for step in range(1, 11))  # 0.95 .. 0.5 of the full range


# ---------------------------------------------------------------- candidates

Candidate = Callable[[Tensor, WeightSpec, Moments], Tensor | None]
"""A weight in float32, its spec, the moments of its input -> the weight on the grid; None where H is poor."""


def nearest(weight: Tensor, planned: WeightSpec, _: Moments) -> Tensor:
    return rounded(weight, weight_params(weight, planned), planned.scale_type)


def hqq(weight: Tensor, planned: WeightSpec, _: Moments) -> Tensor:
    found = half_quadratic(weight, weight_params(weight, full_range(planned)))
    return rounded(weight, found, planned.scale_type)


def clip(weight: Tensor, planned: WeightSpec, moments: Moments) -> Tensor:
    return rounded(weight, clipped(weight, planned, moments), planned.scale_type)


def gptq(weight: Tensor, planned: WeightSpec, moments: Moments) -> Tensor | None:
    if moments.rows < weight.shape[1]:
        return None  # H has no full rank: what is compensated on these rows would be lost on others
    return compensated(
        weight, moments.second, lambda part: shortened(weight_params(part, planned), planned.scale_type)
    )


def gptq_ordered(weight: Tensor, planned: WeightSpec, moments: Moments) -> Tensor | None:
    """Columns by falling power, on the scales of the clip search."""
    if moments.rows < weight.shape[1]:
        return None
    return compensated(
        weight, moments.second, ordered=True,
        params=lambda part: shortened(clipped(part, planned, moments), planned.scale_type),
    )  # fmt: skip


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


def rounded(weight: Tensor, params: QuantParams, scales: str = "float32") -> Tensor:
    return fake_quantize(weight, shortened(params, scales))


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
    found: dict[str, Tried] = {}
    latest: dict[Node, Moments] = {}  # linears that read one value mostly follow one another

    def reached(node: Node, inputs: Sequence[Tensor]) -> Tensor | None:
        if node.name not in wanted:
            return None
        tell("rounding weights", len(found), len(wanted))
        source = node.args[0]
        assert isinstance(source, Node)
        if source not in latest:
            latest.clear()
            latest[source] = moments_at(node, inputs)
        found[node.name] = try_all(weight_of(draft, node), wanted[node.name], latest[source])
        return found[node.name].weight

    run_abreast(graph, batches, reached)
    layers = {}
    for name, tried in found.items():
        node, before = nodes[name], weight_of(draft, nodes[name])
        for obstacle in dict.fromkeys(tried.obstacles.values()):
            those = [method for method, reason in tried.obstacles.items() if reason == obstacle]
            draft.note("round", label(node), "refused", f"{' and '.join(those)} {obstacle}")
        if tried.weight is None:
            continue
        old = node.args[1]
        assert isinstance(old, Node)
        constant = draft.constant(f"{old.target}.rounded", tried.weight, before=node)
        node.replace_input_with(old, constant)
        figures = ", ".join(f"{key} {value:.2f}" for key, value in tried.scores.items())
        draft.note("round", label(node), "applied", f"{tried.method} of {figures} dB")
        layers[name] = Rounded(
            method=tried.method, scores=tried.scores, constant=str(constant.target), before=before
        )
    return Rounding(graph=draft.finish(), layers=layers)


def cannot_round(node: Node, planned: WeightSpec) -> str:
    if node.target is not torch.ops.aten.linear.default:
        return "only the weights of linears are rounded with care"
    if not isinstance(parse_format(planned.format), IntFormat):
        return f"{planned.format} is no integer format"
    weight = spec(arguments(node)["weight"])
    if weight is not None and weight.dtype not in HELD:
        kind = str(weight.dtype).removeprefix("torch.")
        return f"it is in {kind}, from which no steps are read back"
    if planned.limit:
        return "this CPU bears no full codes, and a compensated weight may need them"
    return ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tried:
    """The SQNR of a layer's output in dB by each candidate, the best one, and what was in the way of others.

    The weight is in its type; it is None where no candidate had a grid in that.
    """

    method: str
    scores: dict[str, float]
    weight: Tensor | None
    obstacles: dict[str, str]


TOO_FEW = "need as many rows of data as the layer has inputs"


def try_all(weight: Tensor, planned: WeightSpec, moments: Moments) -> Tried:
    """Every candidate of a method, measured with the steps and codes that kernels will have."""
    wide, kind = weight.float(), str(weight.dtype).removeprefix("torch.")
    if kind != "float32":
        planned = replace(planned, scale_type=HELD[weight.dtype])
    held: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    obstacles: dict[str, str] = {}
    for name in METHODS[planned.method]:
        made = CANDIDATES[name](wide, planned, moments)
        exact = None if made is None else decoded(made.to(weight.dtype), planned)
        if made is None or exact is None:
            obstacles[name] = TOO_FEW if made is None else f"leave values that {kind} cannot hold"
        else:
            held[name], errors[name] = made.to(weight.dtype), moments.power(wide - exact)
    signal, best = moments.power(wide), min(errors, key=errors.__getitem__, default="")
    scores = {name: decibel(signal, error) for name, error in errors.items()}
    return Tried(method=best, scores=scores, weight=held.get(best), obstacles=obstacles)


def decoded(weight: Tensor, planned: WeightSpec) -> Tensor | None:
    """s (q - z) in float32 of a weight on its grid, as kernels multiply it; None where it is on none."""
    if weight.dtype == torch.float32:
        return weight  # which holds every multiple of a short step
    format = parse_format(planned.format)
    assert isinstance(format, IntFormat)
    params, found = find_grid(weight, format, granularity_of(planned))
    return fake_quantize(weight, params) if bool(found.all()) else None


MOST_DB = 150.0


def decibel(signal: float, noise: float) -> float:
    """At most MOST_DB, which is what no noise at all counts as: float32 tells no finer."""
    if signal <= 0:
        return 0.0
    return min(10 * math.log10(signal / noise), MOST_DB) if noise > 0 else MOST_DB
