"""All decisions in order: smooth, equalize, calibrate, plan, correct biases; each kept only if it helps.

decide : (canonical graph, data, recipe, target) -> Decision
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import Node

from qcompiler.errors import PlanError
from qcompiler.ir import Graph, Note, arguments, evaluate, flatten_inputs, label
from qcompiler.ir.edit import with_tensors
from qcompiler.ir.graph import call_widened
from qcompiler.passes.awq import scale_channels
from qcompiler.passes.bias import Correction, correct_bias, corrections
from qcompiler.passes.calibrate import Ranges, batches, calibrate, check_finite, flat_batches, no_data
from qcompiler.passes.equalize import equalize
from qcompiler.passes.fuse import fuse
from qcompiler.passes.placement import Choice, place
from qcompiler.passes.plan import make_plan, values_to_observe
from qcompiler.passes.qat.learned import Learned, with_scales
from qcompiler.passes.round_weights import Rounded, round_weights
from qcompiler.passes.run_time import trades, with_run_time_ranges
from qcompiler.passes.simulate import expected_sqnr
from qcompiler.passes.smooth import norm_outputs, smooth
from qcompiler.plan import Plan
from qcompiler.progress import Tell, silent
from qcompiler.recipe import Recipe
from qcompiler.target import Target

WHOLE = "whole graph"
JUDGED = 4  # batches on which two candidates are compared


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The float graph to quantize, the plan for it, and what was seen of its values."""

    graph: Graph
    plan: Plan
    ranges: Ranges
    recipe: Recipe
    target: Target
    rounded: Mapping[str, Rounded] = field(default_factory=dict)  # layers whose weight is on its grid
    biases: Mapping[str, Correction] = field(default_factory=dict)  # layers whose bias was corrected
    learned: Learned = field(default_factory=Learned)  # what training has made of the plan's scales

    def keeping_float(self, floats: Mapping[str, str]) -> "Decision":
        """The same decision with some layers in float (anchor name -> why), from the same ranges.

        A weight that was rounded for its layer, and a bias that was corrected, get their float values back.
        """
        back = {found.constant: found.before for layer, found in self.rounded.items() if layer in floats}
        back |= {name: before for layer, (name, before) in self.biases.items() if layer in floats}
        graph = with_tensors(self.graph, back)
        plan = make_plan(graph, fuse(graph, self.target), self.ranges, self.recipe, self.target, floats)
        kept = {layer: found for layer, found in self.rounded.items() if layer not in floats}
        plan = with_scales(on_grids(plan, kept), self.learned)
        return replace(self, graph=graph, plan=plan, rounded=kept)

    def all_float(self, original: Graph, why: str) -> "Decision":
        """The decision to ship the float graph as it was."""
        fewer = self.keeping_float({layer.node: why for layer in self.plan.layers})
        return replace(fewer, graph=original)


def decide(
    graph: Graph, data: Sequence[Any], recipe: Recipe, target: Target, *, tell: Tell = silent
) -> Decision:
    """Make all decisions for a canonical graph; the order of calls is the order of the ideas."""
    if not len(data):
        raise no_data()
    for number, batch in enumerate(flat_batches(graph, data), start=1):
        check_finite(graph, batch, number)
    judge = Judge.on(graph, data)
    best = planned(graph, data, recipe, target, tell)
    if recipe.smooth is not None and floats_only(best.plan):
        best = noting(best, "smooth", "refused", "no activation is quantized, so outliers do no harm")
    elif recipe.smooth is not None and (norms := norm_outputs(graph)):
        smoothed = smooth(graph, calibrate(graph, data, norms, tell=tell), exponent=recipe.smooth or None)
        best = judge.better(best, planned(smoothed, data, recipe, target, tell), "smooth")
    if recipe.equalize:
        best = judge.better(best, planned(equalize(best.graph), data, recipe, target, tell), "equalize")
    if recipe.dynamic_where_better:
        best = with_ranges_where_better(best, judge)
    best = with_rounded_weights(best, judge, data, tell)
    if recipe.bias_correction and best.plan.weights:
        exact = {layer: found.before for layer, found in best.rounded.items()}
        graph = correct_bias(best.graph, best.plan, best.ranges, exact)
        corrected = replace(best, graph=graph, biases=corrections(best.graph, graph, best.plan))
        best = judge.better(best, corrected, "correct-bias")
    return best


def planned(graph: Graph, data: Sequence[Any], recipe: Recipe, target: Target, tell: Tell) -> Decision:
    groups = fuse(graph, target)
    choices = place(graph, groups, recipe, target, {})
    check_weights(graph, choices)
    ranges = calibrate(graph, data, values_to_observe(choices), tell=tell)
    plan = make_plan(graph, groups, ranges, recipe, target)
    return Decision(graph=graph, plan=plan, ranges=ranges, recipe=recipe, target=target)


def check_weights(graph: Graph, choices: Mapping[Node, Choice]) -> None:
    """Raise PlanError for a weight to quantize that holds NaN or inf, before its values blame the data."""
    for anchor, choice in choices.items():
        weight = arguments(anchor).get(str(choice.group.row.weight)) if choice.mode != "float" else None
        tensor = graph.tensors.get(str(weight.target)) if isinstance(weight, Node) else None
        if tensor is not None and not bool(tensor.isfinite().all()):
            kind = "NaN" if tensor.isnan().any() else "inf"
            raise PlanError(
                f"a weight of the model contains {kind}", node=label(anchor),
                fix="mend the checkpoint, or keep this layer in float by an override",
            )  # fmt: skip


def with_ranges_where_better(best: Decision, judge: "Judge") -> Decision:
    """Take ranges at run time where each value says that it pays, if the whole model agrees."""
    found = trades(best.graph, best.plan, best.recipe, best.target, judge.samples)
    recipe = with_run_time_ranges(best.recipe, best.graph, found)
    groups = fuse(best.graph, best.target)
    mixed = replace(best, recipe=recipe, plan=make_plan(best.graph, groups, best.ranges, recipe, best.target))
    kept = judge.better(best, mixed, "dynamic-where-better")
    notes = [
        Note(
            stage="canonical", rule="dynamic-where-better", node=trade.value.label,
            outcome="applied" if trade.pays and kept.recipe is recipe else "refused", reason=str(trade),
        )
        for trade in found
    ]  # fmt: skip
    return replace(kept, graph=kept.graph.noting(notes))


def with_rounded_weights(best: Decision, judge: "Judge", data: Sequence[Any], tell: Tell) -> Decision:
    """Round with care where the recipe asks for it, also behind AWQ's scaling; the better one is kept."""
    methods = {spec.method for spec in best.plan.weights} - {"nearest"}
    if not methods:
        return best
    first, flat = best, list(flat_batches(best.graph, data))
    if methods & {"hqq", "gptq", "best"}:
        careful = rounded(first, flat, tell)
        best = with_refusals(judge.better(best, careful, "round"), careful)
    if methods & {"awq", "best"}:
        layers = {spec.layer for spec in first.plan.weights if spec.method in ("awq", "best")}
        judged = [note for note in best.graph.notes if note.rule == "round" and note.node == WHOLE]
        graph = scale_channels(first.graph.noting(judged), first.plan, flat, layers)
        scaled = planned(graph, data, first.recipe, first.target, tell)
        careful = rounded(scaled, flat, tell)
        best = with_refusals(judge.better(best, careful, "awq"), careful)
    return replace(best, plan=on_grids(best.plan, best.rounded))


def with_refusals(kept: Decision, candidate: Decision) -> Decision:
    """What the candidate could not do stays on record, whether it was kept or not."""
    refused = [note for note in candidate.graph.notes if note.outcome == "refused"]
    return replace(kept, graph=kept.graph.noting([n for n in refused if n not in kept.graph.notes]))


def rounded(decision: Decision, flat: Sequence[Sequence[Any]], tell: Tell) -> Decision:
    found = round_weights(decision.graph, decision.plan, flat, tell=tell)
    plan = on_grids(decision.plan, found.layers)
    return replace(decision, graph=found.graph, plan=plan, rounded=found.layers)


def on_grids(plan: Plan, layers: Mapping[str, Rounded]) -> Plan:
    """The plan that reads the scales of rounded weights back from them, and says nearest of all others."""
    weights = tuple(
        replace(spec, observer="grid", method=layers[spec.layer].method, scores=layers[spec.layer].scores)
        if spec.layer in layers else replace(spec, method="nearest")
        for spec in plan.weights
    )  # fmt: skip
    return replace(plan, weights=weights)


def floats_only(plan: Plan) -> bool:
    return not plan.values


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Compares candidates by the SQNR of their simulated outputs against the float graph."""

    samples: Sequence[Sequence[Any]]
    wanted: Sequence[Sequence[Any]]

    @classmethod
    def on(cls, graph: Graph, data: Iterable[Any]) -> "Judge":
        calls = [call for call, _ in zip(batches(data), range(JUDGED), strict=False)]
        samples = [flatten_inputs(graph, args, kwargs) for args, kwargs in calls]
        return cls(samples=samples, wanted=[evaluate(graph, x, evaluate_node=call_widened) for x in samples])

    def score(self, decision: Decision) -> float:
        return expected_sqnr(decision.graph, decision.plan, self.samples, self.wanted)

    def better(self, old: Decision, new: Decision, method: str) -> Decision:
        """Keep the new candidate only if it measures better, and note both figures."""
        before, after = self.score(old), self.score(new)
        kept, outcome = (new, "applied") if after > before else (old, "refused")
        return noting(kept, method, outcome, f"SQNR {before:.2f} dB without, {after:.2f} dB with it")


def noting(decision: Decision, method: str, outcome: str, reason: str) -> Decision:
    """The same decision, with what was done about the whole graph on record."""
    note = Note(stage="canonical", rule=method, node=WHOLE, outcome=outcome, reason=reason)
    return replace(decision, graph=decision.graph.noting([note]))
