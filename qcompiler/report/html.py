"""The report as one page that loads nothing: styles, script and plots stand inside of it."""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.errors import ArtifactError
from qcompiler.report import plots, words
from qcompiler.report.regions import regions
from qcompiler.report.summary import LOW_SQNR_DB, given_up, part, refusals, rows, summarize

if TYPE_CHECKING:
    from markupsafe import Markup

# So many of the worst tensors are drawn; all of them are in the table.
DRAWN = 12


def page(data: Mapping[str, Any]) -> str:
    """The whole page. The same data gives the same text."""
    from markupsafe import Markup

    layers, tensors = rows(data, "layers"), rows(data, "tensors")
    reasons = {row.get("label"): row.get("reason") for row in rows(part(data, "coverage"), "surprises")}
    return render(
        "template.html.j2",
        summary=summarize(data),
        model=part(data, "manifest").get("model"),
        layers=[layer_row(layer, reasons.get(layer.get("label"))) for layer in layers],
        has={key for layer in layers for key, value in layer.items() if value is not None},
        speed=part(data, "speed"),
        nodes=part(data, "accuracy", "nodes"),
        differing=[row for row in rows(part(data, "accuracy", "nodes"), "worst") if row.get("max_lsb") != 0],
        # The plots escape what they show themselves.
        sqnr_plot=Markup(plots.layer_sqnr(layers)),
        time_plot=Markup(plots.layer_time(layers)),
        low_sqnr=LOW_SQNR_DB,
        tensors=tensors,
        drawn=[
            (tensor, Markup(plots.histogram(tensor, f"tensor{i}")), scores(tensor))
            for i, tensor in enumerate(tensors[:DRAWN])
        ],
        refused=refusals(data),
        given_up=given_up(data),
        fusions=rows(data, "fusions"),
        engines=rows(data, "engines"),
        regions=list(regions(data)),
        manifest=words.flatten(part(data, "manifest")),
    )


def render(template: str, **values: Any) -> str:
    """A template of this folder, filled in."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("qcompiler.report", "."),
        autoescape=True,  # names of layers come from the user
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=printed,
    )
    environment.filters |= {
        "breakable": breakable,
        "db": words.decibel,
        "ms": lambda value: words.duration(value, "ms"),
        "us": lambda value: words.duration(value, "µs"),
        "large": words.large,
        "number": words.number,
        "percent": words.percent,
        "times": words.times,
    }
    return environment.get_template(template).render(**values)


def printed(value: object) -> object:
    """What an expression of the template becomes: nothing for None, and no control characters."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    return "" if value is None else words.clean(value)


def breakable(name: object) -> "Markup":
    """A name that may go on in the next line after a dot, a slash or an underscore, and where aWordBegins."""
    from markupsafe import Markup, escape

    pieces = re.split(r"(?<=[./_])|(?<=[a-z])(?=[A-Z])", words.clean(name))
    return Markup("<wbr>").join(escape(piece) for piece in pieces)


def layer_row(layer: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
    """A layer, its speed against float, and whether it is a surprise; `reason` is then why it runs so."""
    compiled, plain, ratio = layer.get("time_us"), layer.get("float_time_us"), None
    if words.is_finite(compiled) and words.is_finite(plain) and compiled > 0:
        ratio = plain / compiled
    surprise = layer.get("executed") is not None and layer["executed"] != layer.get("planned")
    why = reason if surprise and reason else layer.get("why")
    return {**layer, "ratio": ratio, "surprise": surprise, "why": why}


def scores(tensor: Mapping[str, Any]) -> list[tuple[str, float, bool]]:
    """Observer, expected squared error and whether it was chosen; the best one first."""
    found = [(name, value) for name, value in part(tensor, "scores").items() if words.is_finite(value)]
    found.sort(key=lambda row: row[1])
    return [(name, value, name == tensor.get("observer")) for name, value in found]


def write(text: str, path: Path) -> Path:
    """Write a file as a whole or not at all: a reader never sees half of a page."""
    try:
        # Beside its target, since a file can only be renamed within one file system.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: what is no name of a file at all
        raise ArtifactError(
            f"the report cannot be written to {path}",
            why=str(getattr(error, "strerror", None) or error).lower(),
            fix="name a file in a folder that exists and can be written to",
        ) from error
    return path
