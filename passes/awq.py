"""AWQ: scale up the input channels that carry large activations, and fold the inverse into what writes them.

linear(norm(x; g), W)          -->  linear(norm(x; g / t), W t)                  exact in reals
linear(g x, W)                 -->  linear(g / t x, W t)                         g a vector
linear(f(x) * linear(x, U), W) -->  linear(f(x) * linear(x, U / t), W t)         t per channel, rows of U

t_j = (mean|X_j|)^a / sqrt(max t min t),  a the one of 0, 1/20 .. 19/20 with the least ||W X - Q(W t) X / t||
(arXiv 2306.00978, eq. 4 and 5). With a = 0, t is 1 and plain rounding is as it was. What is folded keeps its
type: Q rounds W t as halves hold it; what g / t and U / t lose there is judged at the model's output.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qcompiler.ir import Draft, Graph, arguments, label
from qcompiler.numerics import fake_quantize
from qcompiler.passes.abreast import Moments, moments_at, run_abreast
from qcompiler.passes.smooth import fold, gains, linear_readers, missing_constant, weight_of
from qcompiler.passes.weights import weight_params
from qcompiler.plan import Plan, WeightSpec

aten = torch.ops.aten
EXPONENTS = tuple(step / 20 for step in range(20))
LIMIT = 64.0  # a channel is scaled by 2^-6 .. 2^6 at most


@dataclass(frozen=True, kw_only=True)
class Site:
    """A value whose channels may be scaled: what folds the inverse, and all linears that read it."""

    value: Node
    writer: Node
    readers: tuple[Node, ...]


def scale_channels(graph: Graph, plan: Plan, batches: Iterable[Sequence[Any]], wanted: set[str]) -> Graph:
    """Scale every site of which a layer in `wanted` reads; the function stays what it was."""
    draft = Draft(graph)
    specs = {planned.layer: planned for planned in plan.weights}
    sites = [
        site for site in find_sites(draft)
        if all(reader.name in specs for reader in site.readers) and wanted & {r.name for r in site.readers}
    ]  # fmt: skip
    factors: dict[str, Tensor | None] = {}
    first = {site.readers[0].name: site for site in sites}

    def reached(node: Node, inputs: Sequence[Tensor]) -> None:
        site = first.get(node.name)
        if site is not None:
            factors[node.name] = best_factor(
                [(weight_of(draft, reader), specs[reader.name]) for reader in site.readers],
                moments_at(node, inputs),
            )

    run_abreast(graph, batches, reached)
    for site in sites:
        factor = factors[site.readers[0].name]
        if factor is None:
            draft.note("awq", label(site.value), "refused", "no scaling lowers the error of its readers")
            continue
        obstacle = fold(draft, site.writer, site.readers, factor, "awq")
        draft.note("awq", label(site.value), "refused" if obstacle else "applied", obstacle)
    return draft.finish()


def find_sites(draft: Draft) -> Iterable[Site]:
    """Norms that only linears read, and products of which one factor is a linear with no other reader."""
    for node in draft.nodes:
        writer = node if gains(node) else multiplied_linear(draft, node)
        if writer is None:
            continue
        readers, obstacle = linear_readers(node)
        obstacle = obstacle or (missing_constant(draft, node, readers) if writer is node else
                                missing_weight(draft, writer, readers))  # fmt: skip
        if obstacle:
            draft.note("awq", label(node), "refused", obstacle)
        else:
            yield Site(value=node, writer=writer, readers=tuple(readers))


def multiplied_linear(draft: Draft, node: Node) -> Node | None:
    """The linear U of f(x) * linear(x, U), if nothing else reads it."""
    if node.target is not aten.mul.Tensor:
        return None
    factors = [arg for arg in node.args if isinstance(arg, Node)]
    for factor in factors:
        if factor.target is aten.linear.default and len(factor.users) == 1 and factors.count(factor) == 1:
            return factor
    return None


def missing_weight(draft: Draft, writer: Node, readers: Sequence[Node]) -> str:
    given = arguments(writer)
    bias = given.get("bias")
    if draft.tensor(given["weight"]) is None or (isinstance(bias, Node) and draft.tensor(bias) is None):
        return f"the weight of {label(writer)} is computed at run time"
    if any(draft.tensor(reader.args[1]) is None for reader in readers):
        return "a weight that reads it is computed at run time"
    if any(weight_of(draft, reader).shape[1] != weight_of(draft, writer).shape[0] for reader in readers):
        return "its channels are spread over more than the features of its readers"
    return ""


def best_factor(readers: Sequence[tuple[Tensor, WeightSpec]], moments: Moments) -> Tensor | None:
    """The t of least output error over all readers; None where leaving the value alone is best."""
    magnitude = moments.magnitude.clamp(min=1e-6)
    tried = [normalised(magnitude**a) for a in EXPONENTS]
    errors = [sum(rounding_error(weight, planned, t, moments) for weight, planned in readers) for t in tried]
    best = min(range(len(tried)), key=errors.__getitem__)
    return tried[best] if best else None


def normalised(t: Tensor) -> Tensor:
    return (t / (t.max() * t.min()).sqrt()).clamp(1 / LIMIT, LIMIT).float()


def rounding_error(weight: Tensor, planned: WeightSpec, t: Tensor, moments: Moments) -> float:
    """||(W - Q(W t) / t) X||^2"""
    scaled = (weight * t).to(weight.dtype)
    if not bool(scaled.isfinite().all()):
        return math.inf  # float16 ends soon
    return moments.power(weight - fake_quantize(scaled, weight_params(scaled, planned)) / t)
