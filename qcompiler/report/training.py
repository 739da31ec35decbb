"""The report of a training in few bits: a short table in the terminal, one page in the browser.

`data` is what `training.finetune` tells; what is missing in it is shown as not measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qcompiler.report import words
from qcompiler.report.curves import loss_curves
from qcompiler.report.html import render
from qcompiler.report.summary import Card, Level, Summary, part, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

FLOAT = "float"


def page(data: Mapping[str, Any]) -> str:
    """The whole page, which loads nothing. The same data gives the same text."""
    from markupsafe import Markup

    return render(
        "training.html.j2",
        summary=summarize(data),
        model=data.get("task"),
        is_judged=bool(few_bits(data).get("validation")),
        curves=Markup(loss_curves(data)),
        figures=list(figures(data)),
        learners=[*part(data, "learners")],
        graphs=rows(data, "graphs"),
        mega=mega,
        start=data.get("start"),
        manifest=words.flatten(part(data, "manifest")),
    )


def table(data: Mapping[str, Any]) -> "RenderableType":
    """What `rich.print` shows: one line for each figure, one column for each learner."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    summary = summarize(data)
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    drawn.add_column("")
    for name in part(data, "learners"):
        drawn.add_column(name, justify="right")
    for title, cells in figures(data):
        drawn.add_row(title, *cells)
    told = [Text(f"Look at: {concern}", style="yellow") for concern in summary.concerns]
    told += [Text(f"Checked: {assurance}") for assurance in summary.assurances]
    return Group(Text(f"{summary.headline}\n", style="bold"), drawn, Text(), *told)


def figures(data: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Title, and one cell for each learner."""
    learners, sums, gap = part(data, "learners"), part(data, "memory"), part(data, "gap")
    unit = f", {data['unit']}" if data.get("unit") else ""

    def each(key: str, shown: Any = loss) -> list[str]:
        return [shown(row.get(key)) for row in learners.values()]

    def bytes_of(key: str) -> list[str]:
        return [mega(sums.get(f"{key}_float" if name == FLOAT else key)) for name in learners]

    yield f"training loss at the end{unit}", each("training_loss")
    yield f"validation loss{unit}", each("validation_loss")
    if gap:
        yield "above float's", [*[""] * (len(learners) - 1), above(gap)]
    yield f"seconds per step{timed(data)}", each("seconds_per_step", lambda value: words.number(value, 3))
    yield "MB that cross into backward", bytes_of("crosses")
    yield "MB at the peak of a step, simulated", bytes_of("peak")
    yield "MB of optimizer state", each("state_bytes", mega)


def summarize(data: Mapping[str, Any]) -> Summary:
    good, found = tuple(assurances(data)), tuple(concerns(data))
    level: Level = "warn" if found else "pass" if good else "unknown"
    return Summary(
        level=level, headline=headline(data), assurances=good, concerns=found, cards=tuple(cards(data)),
        checked=" and ".join(checked(data)),
    )  # fmt: skip


def headline(data: Mapping[str, Any]) -> str:
    """llama in int8, act8: loss 1.512 nats a character on validation, 0.002 ± 0.001 above float's"""
    low, gap = few_bits(data), part(data, "gap")
    of, value = ("validation", low.get("validation_loss"))
    if value is None:
        of, value = "training", low.get("training_loss")
    subject = f"{words.called(data.get('task'))} in {words.called(data.get('setting'))}"
    if value is None:
        return f"{subject}: no step was taken"
    unit = f" {data['unit']}" if data.get("unit") else ""
    beside = f", {above(gap)} against float" if gap else ""
    steps = words.plural(data.get("done") or 0, "step")
    return f"{subject}: {of} loss {loss(value)}{unit} after {steps}{beside}"


def assurances(data: Mapping[str, Any]) -> Iterator[str]:
    apart = distances(data)
    if apart:
        yield f"before the first step the gradient was {max(apart):.3f} from float's, relative, as promised"
    gap, allowed = part(data, "gap").get("mean"), part(data, "gap").get("allowed")
    if is_within(gap, allowed):
        yield f"the validation loss is not more than {allowed:g} above float's"


def checked(data: Mapping[str, Any]) -> Iterator[str]:
    """What the assurances are of, in short."""
    if distances(data):
        yield "the first gradient"
    if is_within(part(data, "gap").get("mean"), part(data, "gap").get("allowed")):
        yield "the validation loss"


def distances(data: Mapping[str, Any]) -> list[float]:
    """How far each graph's gradient was from float's, of those that were compared."""
    return [graph["gradient"] for graph in rows(data, "graphs") if words.is_finite(graph.get("gradient"))]


def is_within(gap: Any, allowed: Any) -> bool:
    return words.is_finite(gap) and words.is_finite(allowed) and bool(gap <= allowed)


def concerns(data: Mapping[str, Any]) -> Iterator[str]:
    done, steps = data.get("done") or 0, data.get("steps") or 0
    if data.get("failure"):
        yield str(data["failure"])
    elif done < steps:
        yield f"it was stopped after {done} of {steps} steps"
    gap, allowed = part(data, "gap").get("mean"), part(data, "gap").get("allowed")
    if words.is_finite(gap) and words.is_finite(allowed) and gap > allowed:
        yield f"the validation loss is {gap:.3f} above float's, and may be {allowed:g}"
    judged: Sequence[Any] = few_bits(data).get("validation") or ()
    if len(judged) > 1 and judged[-1][1] >= judged[0][1]:
        yield "the validation loss did not fall"
    for graph in rows(data, "graphs"):
        if graph.get("unchecked"):
            yield f"a graph was not compared with float, because {graph['unchecked']}"
        if graph.get("slow"):
            yield f"the reference stores and draws, which is slow, because {graph['slow']}"


def cards(data: Mapping[str, Any]) -> Iterator[Card]:
    low, sums, gap = few_bits(data), part(data, "memory"), part(data, "gap")
    plain = part(data, "learners").get(FLOAT) or {}
    judged: Sequence[Any] = low.get("validation") or ()
    key = "validation_loss" if judged else "training_loss"
    lines = [f"float {loss(plain.get(key))}"] if plain else []
    if judged:
        lines.append(f"{loss(judged[0][1])} before the first step")
    fell: Level = "pass" if judged and judged[-1][1] < judged[0][1] else "unknown"
    yield Card(
        title=key.replace("_", " ").capitalize(), figure=loss(low.get(key)), lines=tuple(lines), level=fell
    )
    if gap:
        is_within = words.is_finite(gap.get("allowed")) and gap["mean"] <= gap["allowed"]
        told = ("with the standard error over the validation batches", "judged in float on both sides")
        yield Card(
            title="Above float", figure=above(gap), lines=told, level="pass" if is_within else "unknown"
        )
    crosses: Any = sums.get("crosses")
    as_is: Any = sums.get("crosses_float")
    ratio = (
        f"{as_is / crosses:.1f} times fewer than the {mega(as_is)} MB of float" if crosses and as_is else ""
    )
    peak = (
        f"peak of a step {mega(sums.get('peak'))} MB, {mega(sums.get('peak_float'))} MB in float, simulated"
    )
    yield Card(
        title="Cross into backward", figure=f"{mega(crosses)} MB", lines=(ratio, peak) if ratio else (),
        level="pass" if ratio and crosses < as_is else "unknown",
    )  # fmt: skip
    seconds = low.get("seconds_per_step")
    beside = plain.get("seconds_per_step")
    lines = [f"float {words.duration(beside, 's')}"] if plain else []
    lines += [timed(data).removeprefix(", ")] if timed(data) else []
    yield Card(title="Time of a step", figure=words.duration(seconds, "s"), lines=tuple(lines))


def timed(data: Mapping[str, Any]) -> str:
    """Of how many steps the time of one is the median."""
    count = few_bits(data).get("steps_timed")
    return f", median of {words.plural(count, 'step')} after the first" if count else ""


def few_bits(data: Mapping[str, Any]) -> Mapping[str, Any]:
    return part(data, "learners", str(data.get("setting")))


def above(gap: Mapping[str, Any]) -> str:
    error = f" ± {gap['error']:.3f}" if words.is_finite(gap.get("error")) else ""
    return f"{gap['mean']:+.3f}{error}"


def loss(value: object) -> str:
    return f"{value:.3f}" if words.is_finite(value) else words.number(value)


def mega(count: object) -> str:
    return f"{count / 1e6:.3f}" if words.is_finite(count) else words.MISSING
