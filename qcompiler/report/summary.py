"""What the numbers say, in words: one headline, four cards, and what a person should look at.

The terminal and the page both show this; neither draws a conclusion of its own.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qcompiler.report.words import (
    called,
    clean,
    decibel,
    duration,
    is_finite,
    is_number,
    metric,
    number,
    percent,
    plural,
    some,
    times,
)

# The signal is then 32 times the noise in power; an int8 network usually has 25 to 30 dB at its output.
LOW_SQNR_DB = 15.0

ENGINES = {
    "ort": "ONNX Runtime",
    "onnxruntime": "ONNX Runtime",
    "tvm": "TVM",
    "triton": "Triton",
    "reference": "the reference",
}

Level = Literal["pass", "warn", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One topic: the figure that counts, and the sentences that qualify it."""

    title: str
    figure: str
    lines: tuple[str, ...] = ()
    level: Level = "unknown"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The verdict. It is "pass" if something is in `assurances` and nothing in `concerns`.

    checked: in a word or two what has passed, where that is not the whole of what a reader might think.
    """

    level: Level
    headline: str
    assurances: tuple[str, ...]
    concerns: tuple[str, ...]
    cards: tuple[Card, ...]
    checked: str = ""

    @property
    def verdict(self) -> str:
        passed = f"Passed: {self.checked}" if self.checked else "Passed"
        return {"pass": passed, "warn": "Needs a look", "unknown": "Not checked"}[self.level]


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """All refusals of one rule: reason -> the nodes it was given for."""

    rule: str
    reasons: Mapping[str, Sequence[str]]

    @property
    def count(self) -> int:
        return sum(len(nodes) for nodes in self.reasons.values())


def part(data: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The mapping at a path, empty where there is none."""
    for key in path:
        inner = data.get(key)
        if not isinstance(inner, Mapping):
            return {}
        data = inner
    return data


def rows(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [row for row in data.get(key) or () if isinstance(row, Mapping)]


def summarize(data: Mapping[str, Any]) -> Summary:
    good, found = assurances(data), concerns(data)
    return Summary(
        level="warn" if found else "pass" if good else "unknown",
        headline=headline(data),
        assurances=good,
        concerns=found,
        cards=(accuracy_card(data), coverage_card(data), speed_card(data), distance_card(data)),
    )


def headline(data: Mapping[str, Any]) -> str:
    """int8 on ONNX Runtime: 21 of 21 planned layers run in integers, 3.33x float, 28.9 dB; engine ..."""
    manifest, coverage = part(data, "manifest"), part(data, "coverage")
    recipe = manifest.get("recipe")
    name = recipe.get("name") if isinstance(recipe, Mapping) else recipe
    engine = engine_name(data)
    facts = []
    if is_number(coverage.get("planned_integer")):
        facts.append(f"{executed_of_planned(coverage)} planned layers run in integers")
    speed = part(data, "speed")
    ratio = speed.get("quantized_ratio" if speed.get("kept") == "float" else "ratio")
    if is_number(ratio):
        facts.append(f"{times(ratio)} float")
    if is_number(part(data, "accuracy").get("sqnr_db")):
        facts.append(decibel(part(data, "accuracy")["sqnr_db"]))
    subject = f"{clean(name or 'quantized')}{f' on {engine}' if engine else ''}"
    if speed.get("kept") == "float":
        subject = f"float model kept; {subject} would be"
    sentence = f"{subject}: {', '.join(facts) or 'nothing was measured'}"
    distance = distance_words(part(data, "accuracy", "distance"))
    return f"{sentence}; engine {distance}" if distance else sentence


def engine_name(data: Mapping[str, Any]) -> str:
    backend = part(data, "manifest").get("backend")
    return ENGINES.get(str(backend), clean(backend)) if backend else ""


def executed_of_planned(coverage: Mapping[str, Any]) -> str:
    return f"{number(coverage.get('executed_integer'))} of {number(coverage.get('planned_integer'))}"


def distance_words(distance: Mapping[str, Any]) -> str:
    furthest, bound = distance.get("max_lsb"), distance.get("bound_lsb")
    if not is_number(furthest):
        return ""
    if furthest == 0:
        return "equals the reference"
    if distance.get("within") is not False:
        return f"within {number(furthest)} LSB of the reference"
    return f"{number(furthest)} LSB from the reference, where {number(bound)} is allowed"


def assurances(data: Mapping[str, Any]) -> tuple[str, ...]:
    """What was checked and found to hold."""
    accuracy = part(data, "accuracy")
    nodes = part(accuracy, "nodes")
    claims = (
        (part(data, "coverage").get("holds"), "what was planned is what runs"),
        (part(accuracy, "distance").get("within"), "the output is within its bound of the reference"),
        (
            nodes.get("within") if nodes.get("checked") != 0 else None,
            "so is every kernel that was checked by itself",
        ),
    )
    return tuple(words for holds, words in claims if holds is True)


def concerns(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Everything that breaks a promise or should be explained, one sentence each; empty is good."""
    coverage, accuracy, speed = part(data, "coverage"), part(data, "accuracy"), part(data, "speed")
    distance, nodes = part(accuracy, "distance"), part(accuracy, "nodes")
    surprises, stray = rows(coverage, "surprises"), coverage.get("stray") or ()
    found = [
        f"{called(row.get('label'))} ({called(row.get('op'))}) was planned in {called(row.get('planned'))} "
        f"and runs in {called(row.get('executed'))}: {called(row.get('reason') or 'no reason is known')}"
        for row in surprises
    ]
    if stray:
        found.append(f"{plural(len(stray), 'quantize or dequantize node')} left over: {some(stray, 3)}")
    if coverage.get("holds") is False and not found:
        found.append("what runs differs from what was planned")
    if coverage.get("planned_integer") == 0:
        found.append("no layer was planned in integers")
    if distance.get("within") is False:
        found.append(
            f"the output is {number(distance.get('max_lsb'))} LSB from the reference, "
            f"where {number(distance.get('bound_lsb'))} is allowed"
        )
    if nodes.get("within") is False:
        far = [row for row in rows(nodes, "worst") if is_over(row)]
        names = [f"{called(row.get('label'))} ({number(row.get('max_lsb'))} LSB)" for row in far]
        found.append(f"layers further from the reference than allowed: {some(names, 3, 60) or 'unnamed'}")
    if accuracy.get("ranges_from_example") is True:
        found.append("ranges come from the example inputs alone: calibrate on data that the model will see")
    found += [line for line in (low_sqnr(accuracy.get("sqnr_db")), slow(speed)) if line]
    return tuple(found)


def is_over(row: Mapping[str, Any]) -> bool:
    furthest, allowed = row.get("max_lsb"), row.get("allowed")
    return is_number(furthest) and is_number(allowed) and furthest > allowed


def low_sqnr(value: Any) -> str:
    if not is_number(value) or value >= LOW_SQNR_DB:
        return ""
    if math.isnan(value):
        return "the outputs contain values that are not numbers"
    return f"{decibel(value)} against float is low: less than {LOW_SQNR_DB:.0f} dB is a fault to explain"


def slow(speed: Mapping[str, Any]) -> str:
    if speed.get("kept") == "float":
        if predicted := rows(speed, "predicted"):
            where = device_of(predicted)
            return f"quantized is not predicted to be faster on {where}, so the float model was kept"
        ratio = speed.get("quantized_ratio")
        found = (
            f"runs at {times(ratio)} the speed of float" if is_number(ratio) else "is not faster than float"
        )
        return f"quantized {found}, so the float model was kept"
    if is_number(speed.get("ratio")) and speed["ratio"] < 1:
        return f"quantized runs at {times(speed['ratio'])} the speed of float"
    return ""


def accuracy_card(data: Mapping[str, Any]) -> Card:
    accuracy = part(data, "accuracy")
    measured, value = part(accuracy, "metric"), accuracy.get("sqnr_db")
    lines = []
    if measured:
        name = clean(measured.get("name") or "metric")
        lines.append(f"{name} of {number(measured.get('samples'))} samples")
        lines.append(f"float has {metric(name, measured.get('float'))}")
        figure = metric(name, measured.get("quantized"))
    else:
        figure = decibel(value) if is_number(value) else "not measured"
    if is_number(value):
        against = f"{decibel(value)} against float" if measured else "signal to noise against float"
        samples = accuracy.get("samples")
        lines.append(f"{against} ({plural(samples, 'sample')})" if isinstance(samples, int) else against)
    if is_number(accuracy.get("reference_sqnr_db")):
        lines.append(f"the reference has {decibel(accuracy['reference_sqnr_db'])}")
    if is_number(accuracy.get("agreement")):
        lines.append(f"the same answer as float in {percent(accuracy['agreement'])} of cases")
    if accuracy.get("weights_are_random"):
        lines.append("the weights are random, so accuracy means little")
    low = bool(low_sqnr(value))
    return Card(
        title="Accuracy",
        figure=figure,
        lines=tuple(lines),
        level="warn" if low else "pass" if is_number(value) else "unknown",
    )


def coverage_card(data: Mapping[str, Any]) -> Card:
    coverage = part(data, "coverage")
    if not coverage:
        return Card(title="Coverage", figure="not checked")
    kernels = Counter({name: count for name, count in part(coverage, "kernels").items() if is_number(count)})
    lines = [
        "planned layers run in integers",
        some(
            [
                f"{op} {number(count.get('integer'))}/{number(count.get('total'))}"
                for op, count in part(coverage, "by_op").items()
                if isinstance(count, Mapping)
            ],
            6,
        ),
        some([f"{count} {kernel}" for kernel, count in kernels.most_common()], 5),
    ]
    lines += [clean(remark) for remark in coverage.get("remarks") or ()]
    surprises = len(rows(coverage, "surprises"))
    if surprises:
        lines.append(f"{plural(surprises, 'layer')} not as planned")
    if coverage.get("stray"):
        lines.append(f"{plural(len(coverage['stray']), 'stray node')}")
    holds = coverage.get("holds")
    return Card(
        title="Coverage",
        figure=executed_of_planned(coverage),
        lines=tuple(line for line in lines if line),
        level="unknown" if holds is None else "pass" if holds else "warn",
    )


def speed_card(data: Mapping[str, Any]) -> Card:
    speed = part(data, "speed")
    if not speed:
        return Card(title="Speed", figure="not measured")
    if "predicted" in speed:
        return predicted_card(speed)
    # What was kept decides the ratio; where that is float itself, the quantized model is what one asks about.
    kept = speed.get("kept")
    compiled = speed.get("quantized_ms" if kept == "float" else "kept_ms") or speed.get("quantized_ms")
    subject = "quantized " if kept == "float" else ""
    lines = [f"{subject}{duration(compiled, 'ms')} against {duration(speed.get('float_ms'), 'ms')} in float"]
    ratios = [ratio for ratio in speed.get("ratios") or () if is_finite(ratio)]
    if ratios:
        lines.append(f"{subject}rounds from {times(min(ratios))} to {times(max(ratios))}")
    setting = [
        plural(speed["threads"], "thread") if isinstance(speed.get("threads"), int) else "",
        f"batch {speed['batch']}" if is_number(speed.get("batch")) else "",
        plural(speed["rounds"], "round") if isinstance(speed.get("rounds"), int) else "",
    ]
    lines += [", ".join(line for line in setting if line), clean(speed.get("cpu") or "")]
    if kept in ("float", "partly"):
        lines.append(
            "the float model was kept" if kept == "float" else "some layers were given back to float"
        )
    return Card(
        title="Speed",
        figure=times(speed.get("ratio")),
        lines=tuple(line for line in lines if line),
        level="warn" if slow(speed) else "pass" if is_number(speed.get("ratio")) else "unknown",
    )


def predicted_card(speed: Mapping[str, Any]) -> Card:
    """Of a model whose device is absent."""
    found = rows(speed, "predicted")
    paying = f"{sum(row.get('kept') is True for row in found)} of {plural(len(found), 'value')}"
    lines = [
        "there is no such device here: the model was checked on the CPU's reference and not timed",
        f"predicted to pay on {device_of(found)}: {paying} that quantized linears read"
        if found
        else "no linear is quantized",
    ]
    return Card(
        title="Speed", figure="predicted", lines=tuple(lines), level="warn" if slow(speed) else "unknown"
    )


def device_of(predicted: Sequence[Mapping[str, Any]]) -> str:
    return called(predicted[0].get("device")) if predicted else ""


def distance_card(data: Mapping[str, Any]) -> Card:
    distance, nodes = part(data, "accuracy", "distance"), part(data, "accuracy", "nodes")
    if not is_number(distance.get("max_lsb")):
        return Card(title="Distance to the reference", figure="not checked")
    lines = [
        "largest difference of an output value",
        f"{number(distance.get('bound_lsb'))} LSB allowed",
        f"{percent(distance.get('changed'))} of the values differ",
    ]
    if is_number(distance.get("agreement")):
        lines.append(f"the same answer as the reference in {percent(distance['agreement'])} of cases")
    if distance.get("unit"):
        lines.append(f"unit: {clean(distance['unit'])}")
    if nodes:
        checked, within = nodes.get("checked"), nodes.get("within")
        state = "" if within is None else ", all within bounds" if within else ", some outside their bounds"
        count = plural(checked, "node") if isinstance(checked, int) else "nodes"
        lines.append(
            f"{count} checked one by one{state}" if checked != 0 else "no node could be checked by itself"
        )
    outside = False in (distance.get("within"), nodes.get("within"))
    return Card(
        title="Distance to the reference",
        figure=f"{number(distance['max_lsb'])} LSB",
        lines=tuple(lines),
        level="warn" if outside else "unknown" if distance.get("within") is None else "pass",
    )


def refusals(data: Mapping[str, Any]) -> tuple[Refusals, ...]:
    """What the rules refused, by rule and reason, the most frequent rule first."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows(data, "refused"):
        reasons = found.setdefault(called(row.get("rule")), {})
        reasons.setdefault(called(row.get("reason")), []).append(called(row.get("node")))
    groups = (Refusals(rule=rule, reasons=reasons) for rule, reasons in found.items())
    return tuple(sorted(groups, key=lambda group: -group.count))


def given_up(data: Mapping[str, Any]) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Layers that were given back to float because integers were not faster, and why."""
    told = [
        (tuple(called(label) for label in row.get("labels") or ()), called(row.get("why")))
        for row in rows(part(data, "speed"), "given_up")
    ]
    named = {label for labels, _ in told for label in labels}
    silent: dict[str, list[str]] = {}
    for row in rows(data, "layers"):
        label = called(row.get("label") or row.get("node"))
        if row.get("given_up") and label not in named:
            silent.setdefault(called(row.get("why")), []).append(label)
    return (*told, *((tuple(labels), why) for why, labels in silent.items()))
