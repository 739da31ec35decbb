"""Plots as inline SVG. The same data gives the same text, whatever style the user has set.

Backgrounds are transparent, colours are of middle brightness, and the page's style sets the colour of the
letters, so that a plot is readable on light and on dark.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from qcompiler.report.summary import LOW_SQNR_DB
from qcompiler.report.words import called, decibel, duration, is_finite, is_number, number, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTEGER, FLOAT, MARK, BAD = "#3d7fd6", "#9aa3ad", "#d9822b", "#d64545"

# Layers whose names fit side by side; beyond that every second, third, ... is named.
NAMED = 56

STYLE = {
    "svg.hashsalt": "qcompiler",
    "svg.fonttype": "none",  # letters stay letters: small, searchable, and the page sets font and colour
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FLOAT,
    "axes.axisbelow": True,
    "xtick.color": FLOAT,
    "ytick.color": FLOAT,
    "grid.color": FLOAT,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}

Hints = Mapping[str, str]  # id of a part of the plot -> what is told when one points at it


def layer_sqnr(layers: Sequence[Mapping[str, Any]]) -> str:
    """SQNR of every layer's output in execution order: where error enters, and where it is absorbed."""
    values = [layer.get("sqnr_db") for layer in layers]
    finite = [value for value in values if is_finite(value)]
    if not finite:
        return ""
    with styled():
        figure, axes = wide()
        # An output without any error is drawn at the top, one that is all error at the bottom.
        top, bottom = max(*finite, LOW_SQNR_DB) + 5, min(*finite, LOW_SQNR_DB - 5)
        ends = {math.inf: top, -math.inf: bottom}
        known = [
            (i, ends.get(value, value))
            for i, value in enumerate(values)
            if is_number(value) and not math.isnan(value)
        ]
        axes.plot(*zip(*known, strict=True), color=FLOAT, linewidth=0.8, alpha=0.7)
        for name, colour, integer in (("integer", INTEGER, True), ("float", FLOAT, False)):
            points = [(i, value) for i, value in known if is_integer(layers[i]) == integer]
            if points:
                axes.plot(*zip(*points, strict=True), ".", color=colour, ms=6, label=f"runs in {name}")
        ideal = [(i, top) for i, value in enumerate(values) if value == math.inf]
        if ideal:
            axes.plot(*zip(*ideal, strict=True), "^", color=MARK, markersize=4, label="no error")
        axes.axhline(
            LOW_SQNR_DB, color=BAD, linewidth=0.8, linestyle=(0, (4, 3)), label=f"{LOW_SQNR_DB:g} dB"
        )
        axes.set_ylim(bottom - 1, top + 1)
        axes.set_ylabel("SQNR, dB")
        hints = columns(
            axes, [f"{called(row.get('label'))}: {decibel(row.get('sqnr_db'))}" for row in layers]
        )
        layer_axis(axes, layers)
        legend(axes)
        return svg(figure, "sqnr", "Signal to quantization noise of every layer, in execution order", hints)


def layer_time(layers: Sequence[Mapping[str, Any]]) -> str:
    """Time of every layer against float, and the least time that the machine's roofline allows."""
    if not any(is_finite(layer.get(key)) for layer in layers for key in ("time_us", "float_time_us")):
        return ""
    with styled():
        figure, axes = wide()
        for key, name, colour, width in (
            ("float_time_us", "float", FLOAT, 0.84),
            ("time_us", "compiled", INTEGER, 0.46),
        ):
            known = [(i, row[key]) for i, row in enumerate(layers) if is_finite(row.get(key))]
            if known:
                alpha = 0.45 if key == "float_time_us" else 1.0
                places, heights = zip(*known, strict=True)
                axes.bar(places, heights, width, color=colour, alpha=alpha, label=name)
        roof = [(i, row["roofline_us"]) for i, row in enumerate(layers) if is_finite(row.get("roofline_us"))]
        if roof:
            places, least = zip(*roof, strict=True)
            left, right = [i - 0.42 for i in places], [i + 0.42 for i in places]
            axes.hlines(least, left, right, color=MARK, linewidth=1.4, label="roofline")
        axes.set_ylabel("time, µs")
        hints = columns(axes, [time_hint(layer) for layer in layers])
        layer_axis(axes, layers)
        legend(axes, reverse=True)  # float, then what is drawn over it
        return svg(figure, "time", "Time of every layer against float and the roofline", hints)


def histogram(tensor: Mapping[str, Any], name: str) -> str:
    """How the values of one tensor are spread, the chosen range, and what lies outside of it."""
    from matplotlib.figure import Figure

    bins = tensor.get("histogram")
    counts = bins.get("counts") if isinstance(bins, Mapping) else None
    if not isinstance(bins, Mapping) or not counts or not any(counts) or not is_finite(bins.get("width")):
        return ""
    start, width = bins.get("start", 0.0), bins["width"]
    edges = [start + width * i for i in range(len(counts) + 1)]
    lo, hi = tensor.get("lo"), tensor.get("hi")
    with styled():
        figure = Figure(figsize=(3.0, 1.45), layout="constrained")
        axes = figure.add_subplot()
        axes.set_yscale("log")  # a few values far out decide the range, and must be seen beside the many
        axes.set_ylim(0.7, 1.6 * max(counts))
        axes.stairs(counts, edges, baseline=0.7, fill=True, color=INTEGER, alpha=0.75)
        limits = [value for value in (lo, hi) if is_finite(value)]
        left, right = min(edges[0], *limits, edges[-1]), max(edges[-1], *limits, edges[0])
        margin = 0.02 * (right - left) or 1.0
        axes.set_xlim(left - margin, right + margin)
        for value, far in ((lo, left - margin), (hi, right + margin)):
            if is_finite(value):
                axes.axvspan(min(value, far), max(value, far), color=BAD, alpha=0.13, linewidth=0)
                axes.axvline(value, color=BAD, linewidth=1.2)
        axes.set_yticks([], minor=True)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)
        title = (
            f"Values of {called(tensor.get('label'))}, counts on a logarithmic scale; "
            f"the chosen range is {number(lo)} to {number(hi)}"
        )
        return svg(figure, name, title, {})


def is_integer(layer: Mapping[str, Any]) -> bool:
    return str(layer.get("executed") or layer.get("planned") or "").startswith(("int", "uint"))


def time_hint(layer: Mapping[str, Any]) -> str:
    names = (("time_us", "compiled"), ("float_time_us", "float"), ("roofline_us", "roofline"))
    told = [f"{name} {duration(layer.get(key), 'µs')}" for key, name in names if is_number(layer.get(key))]
    return f"{called(layer.get('label'))}: {', '.join(told) or 'not measured'}"


def styled() -> Any:
    """matplotlib's own defaults and STYLE, until the `with` block ends."""
    from matplotlib import style

    return style.context(["default", STYLE])


def wide() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.9), layout="constrained")
    return figure, figure.add_subplot()


def layer_axis(axes: "Axes", layers: Sequence[Mapping[str, Any]]) -> None:
    step = math.ceil(len(layers) / NAMED)
    named = range(0, len(layers), step)
    labels = [shorten(called(layers[i].get("label")), 24) for i in named]
    axes.set_xticks(named, labels, rotation=90, fontsize=7)
    axes.set_xlim(-0.8, len(layers) - 0.2)
    axes.grid(axis="y")


def legend(axes: "Axes", *, reverse: bool = False) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, borderaxespad=0, reverse=reverse)


def columns(axes: "Axes", texts: Sequence[str]) -> dict[str, str]:
    """An invisible column for every layer, which tells its text when one points at it."""
    hints = {}
    for i, text in enumerate(texts):
        # Not quite transparent: what is fully so is not drawn, and then there is nothing to point at.
        axes.axvspan(i - 0.5, i + 0.5, color=FLOAT, alpha=0.004, linewidth=0, gid=f"hint-{i}")
        hints[f"hint-{i}"] = text
    return hints


def svg(figure: "Figure", name: str, title: str, hints: Hints) -> str:
    """The figure as an element of a page. Its ids begin with `name`, so that several can stand on one."""
    out = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the letters and has all of them; matplotlib's own font is only used to measure.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    root = ElementTree.fromstring(out.getvalue())
    for parent in list(root.iter()):
        parent.tag = local(parent.tag)
        for child in list(parent):
            if local(child.tag) in ("metadata", "style"):  # the style would hold for the whole page
                parent.remove(child)
        parent.attrib = {local(key): named(name, local(key), value) for key, value in parent.attrib.items()}
    for element in list(root.iter()):
        hint = hints.get(element.get("id", "").removeprefix(f"{name}-"))
        if hint is not None:
            element.set("class", "hint")
            told = ElementTree.Element("title")
            told.text = hint
            element.insert(0, told)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": title,
        "class": "plot",
    }
    told = ElementTree.Element("title")
    told.text = title
    root.insert(0, told)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def local(tag: str) -> str:
    """{http://www.w3.org/2000/svg}g  -->  g: inside of HTML there are no namespaces."""
    return tag.rpartition("}")[2]


def named(name: str, key: str, value: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return value.replace("url(#", f"url(#{name}-")
