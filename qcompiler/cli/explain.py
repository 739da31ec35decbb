"""`qcompiler explain`: every decision and every refusal with its reason; nothing is lowered or timed."""

import fnmatch
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from qcompiler.cli import options
from qcompiler.cli.screen import say, show, write_json
from qcompiler.errors import InputError

if TYPE_CHECKING:
    from qcompiler.ir import Note
    from qcompiler.passes.decide import Decision
    from qcompiler.plan import Plan, WeightSpec


def run(
    model: options.Model,
    node: Annotated[
        str | None,
        typer.Argument(metavar="[NODE]", help="Only what matches: a part of the name, or a pattern with *.",
                       show_default=False),
    ] = None,
    recipe: options.RecipeName = "int8",
    target: options.TargetName = "cpu",
    calibration: options.Calibration = None,
    override: options.Overrides = None,
    seed: options.Seed = 0,
    json: options.Json = None,
) -> None:  # fmt: skip
    """Show what would be decided for a model, and why.

    Layers with precision and kernel, tensors with format and range, and all rewrites that were refused.
    """
    from qcompiler import api, artifact
    from qcompiler.cli.recipes import chosen_recipe
    from qcompiler.cli.source import find_source

    wanted = chosen_recipe(recipe, override)
    if json is not None and str(json) != "-":
        artifact.check_writable_file(json)
    source = find_source(model, calibration=calibration)
    decision = api.explain(
        source.model, source.example_inputs, calibration=source.calibration, recipe=wanted, target=target,
        seed=seed, progress=True,
    )  # fmt: skip
    found = matching(explanation(decision), node)
    if json is not None:
        write_json(found, json)
    if str(json) != "-":
        draw(found)


def explanation(decision: "Decision") -> dict[str, Any]:
    """The plan and the refusals as plain values; every row has the names that it is found by."""
    plan = decision.plan
    notes = dict.fromkeys(note for note in decision.graph.notes)
    return {
        "recipe": plan.recipe,
        "target": plan.target,
        "layers": layers(plan),
        "tensors": tensors(plan),
        "refused": [told(note) for note in notes if note.outcome == "refused"],
        "applied": [told(note) for note in notes if note.outcome == "applied"],
    }


def layers(plan: "Plan") -> list[dict[str, Any]]:
    return [
        {"node": layer.node, "label": layer.label, "op": layer.op, "precision": layer.precision,
         "kernel": layer.kernel, "why": layer.why, "source": layer.source}
        for layer in plan.layers
    ]  # fmt: skip


def tensors(plan: "Plan") -> list[dict[str, Any]]:
    labels = {layer.node: layer.label for layer in plan.layers}
    values = [
        {"node": value.value, "label": value.label, "format": value.format,
         "range": None if value.dynamic else [value.lo, value.hi], "granularity": "per tensor",
         "observer": value.observer, "why": value.why}
        for value in plan.values
    ]  # fmt: skip
    weights = [
        {"node": weight.layer, "label": f"{labels.get(weight.layer, weight.layer)}.{weight.argument}",
         "format": weight.format, "range": None, "granularity": granularity(weight),
         "observer": weight.method if weight.observer == "grid" else weight.observer,
         "why": "a constant of the layer"}
        for weight in plan.weights
    ]  # fmt: skip
    return values + weights


def granularity(weight: "WeightSpec") -> str:
    return f"groups of {weight.group_size}" if weight.group_size else "per channel"


def told(note: "Note") -> dict[str, str]:
    return {"rule": note.rule, "node": note.node, "reason": note.reason}


def matching(found: dict[str, Any], pattern: str | None) -> dict[str, Any]:
    """Only the rows whose node or label matches; raises InputError where none does."""
    if pattern is None:
        return found
    kept = {key: [row for row in rows if fits(row, pattern)] if isinstance(rows, list) else rows
            for key, rows in found.items()}  # fmt: skip
    if not any(rows for rows in kept.values() if isinstance(rows, list)):
        names = [str(row["label"]) for row in found["layers"]]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise InputError(
            f"nothing matches '{pattern}'", why=f"the layers are {', '.join(names[:8])}{more}",
            fix="give a part of such a name, or a pattern with *",
        )  # fmt: skip
    return kept


def fits(row: dict[str, Any], pattern: str) -> bool:
    names = [str(row.get(key, "")) for key in ("node", "label")]
    if any(letter in pattern for letter in "*?["):
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)
    return any(pattern in name for name in names)


# ---------------------------------------------------------------- drawing


def draw(found: dict[str, Any]) -> None:
    say(f"{found['recipe']} on {found['target']}")
    table("Layers", ("layer", "op", "precision", "kernel", "why"), (
        (row["label"], row["op"], row["precision"], row["kernel"], row["why"]) for row in found["layers"]
    ))  # fmt: skip
    table("Tensors", ("tensor", "format", "range", "by", "why"), (
        (row["label"], row["format"], span(row), row["observer"], row["why"]) for row in found["tensors"]
    ))  # fmt: skip
    table("Refused", ("rule", "node", "reason"), (
        (row["rule"], row["node"], row["reason"]) for row in found["refused"]
    ))  # fmt: skip


def span(row: dict[str, Any]) -> str:
    if row["range"] is None:
        return str(row["granularity"]) if row["observer"] != "run time" else "at run time"
    return f"{row['range'][0]:.4g} … {row['range'][1]:.4g}"


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in columns:
        drawn.add_column(name, overflow="fold", header_style="dim")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    if drawn.row_count:
        say()
        show(drawn)
