"""The speed guard: float and quantized model timed interleaved; what loses goes back to float.

1. regions: layers joined by codes; time each in both models from the engine's profile
2. a region that is slower than float is taken back, and the result timed against both
3. a model that is still slower than float is float
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import networkx as nx
from torch import Tensor

from qcompiler.passes.decide import Decision
from qcompiler.passes.fuse import fuse
from qcompiler.plan import LayerPlan
from qcompiler.tune.measure import Timing, interleave

MARGIN = 0.08  # repeated ratios agree to about 8 %: a smaller loss cannot be told from noise
WORTH = 0.01  # regions below this share of the model's time are left alone


class Timed(Protocol):
    """What the guard needs of an engine."""

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]: ...

    def profile(self, inputs: Sequence[Tensor]) -> Mapping[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class GivenUp:
    """Layers that went back to float, and the figures that decided."""

    layers: tuple[str, ...]
    why: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the guard kept, with its timing."""

    kept: str  # "quantized", "partly" or "float"
    decision: Decision
    executable: Any
    timing: Timing
    profiles: Mapping[str, Mapping[str, float]]
    given_up: tuple[GivenUp, ...] = ()


def guard(
    decision: Decision,
    quantized: Timed,
    floating: Timed,
    inputs: Sequence[Tensor],
    lower: Callable[[Decision], Timed | None],
    *,
    tick: Callable[[], None] = lambda: None,
) -> Verdict:
    """Never ship a slowdown: return what is fastest, and say what was given up for it.

    `lower` makes a contender of a decision, or returns None where it may not ship.
    """
    profiles = {"float": floating.profile(inputs), "quantized": quantized.profile(inputs)}
    contenders: dict[str, Timed] = {"float": floating, "quantized": quantized}
    losing = losing_regions(decision, profiles["float"], profiles["quantized"])
    fewer = decision
    if losing:
        fewer = decision.keeping_float({name: loss.why for loss in losing for name in loss.layers})
        partly = lower(fewer) if any(layer.precision != "float" for layer in fewer.plan.layers) else None
        contenders |= {"partly": partly} if partly is not None else {}
    timing = interleave({name: partial(run, inputs) for name, run in contenders.items()}, tick=tick)
    best = min(contenders, key=timing.median)
    if best != "float" and timing.ratio("float", best) < 1:
        best = "float"
    if best == "partly" and timing.ratio("quantized", "partly") < 1:
        best = "quantized"
    labels = {layer.node: layer.label for layer in decision.plan.layers}
    given_up = {
        "quantized": (),
        "partly": tuple(named(loss, labels) for loss in losing),
        "float": (everything(decision, timing),),
    }[best]
    return Verdict(
        kept=best, decision=fewer if best == "partly" else decision, executable=contenders[best],
        timing=timing, profiles=profiles, given_up=given_up,
    )  # fmt: skip


def everything(decision: Decision, timing: Timing) -> GivenUp:
    ratio = timing.ratio("float", "quantized")
    return GivenUp(
        layers=tuple(layer.label for layer in decision.plan.layers if layer.precision != "float"),
        why=f"the quantized model runs at {ratio:.2f}x the speed of float on these inputs",
    )


def named(loss: GivenUp, labels: Mapping[str, str]) -> GivenUp:
    return GivenUp(layers=tuple(labels.get(name, name) for name in loss.layers), why=loss.why)


def losing_regions(
    decision: Decision, floating: Mapping[str, float], quantized: Mapping[str, float]
) -> list[GivenUp]:
    """Regions whose nodes take longer as integers, Q and DQ included, than as floats."""
    total = sum(quantized.values())
    found = []
    for region in regions(decision):
        names = covered(decision, region)
        before = sum(floating.get(name, 0.0) for name in names)
        after = sum(quantized.get(name, 0.0) for name in names)
        if before and after > before * (1 + MARGIN) and after - before > WORTH * total:
            found.append(GivenUp(
                layers=tuple(layer.node for layer in region),
                why=f"slower as integers: {after:.0f} us against {before:.0f} us in float",
            ))  # fmt: skip
    return found


def regions(decision: Decision) -> list[list[LayerPlan]]:
    """Planned integer layers, joined where one's codes are another's input."""
    layers = [layer for layer in decision.plan.layers if layer.precision != "float"]
    joined: nx.Graph[str] = nx.Graph()
    joined.add_nodes_from(layer.node for layer in layers)
    graph = decision.graph.by_name
    results = {
        group.result.name: anchor.name for anchor, group in fuse(decision.graph, decision.target).items()
    }
    for value in decision.plan.values:
        around = [
            user.name for user in graph[value.value].users if not value.readers or user.name in value.readers
        ]
        around += [results[value.value]] if value.value in results and not value.readers else []
        known = [name for name in around if joined.has_node(name)]
        joined.add_edges_from(pairwise(known))
    by_name = {layer.node: layer for layer in layers}
    return [[by_name[name] for name in sorted(members)] for members in nx.connected_components(joined)]


def covered(decision: Decision, region: Sequence[LayerPlan]) -> set[str]:
    """Names under which a region's work appears in either profile: ops, absorbed ops, Q and DQ."""
    groups = {anchor.name: group for anchor, group in fuse(decision.graph, decision.target).items()}
    names: set[str] = set()
    for layer in region:
        group = groups[layer.node]
        nodes = (group.anchor, *group.chain, *group.anchor.all_input_nodes)
        names |= {name for node in nodes for name in (f"{node.name}_q", f"{node.name}_dq")}
        names |= {node.name for node in (group.anchor, *group.chain)}
        names |= {f"{node.name}_Relu" for node in group.chain} | {f"{node.name}_Clip" for node in group.chain}
    return names
