"""The result of the GPU benchmark as Markdown and as a picture."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_ceilings import NOISE, Ceilings, shares
from benchmarks.gpu_contest import OK, SKIPPED, WRONG, Figure
from benchmarks.gpu_verdicts import Default, Verdict
from benchmarks.records import table
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.backends.triton.tuning.profit import MEASURED

COLUMNS = (
    "op", "scheme", "M, N, K", "contender", "us (p20 to p80)", "baseline us", "times as fast", "of a copy",
    "of memory", "of operations", "verdict",
)  # fmt: skip


def page(
    head: Mapping[str, Any], figures: Sequence[Figure], of: Ceilings, verdicts: Sequence[Verdict],
    default: Default, errors: Sequence[str], stages: Mapping[str, str],
) -> str:  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    parts = [
        f"{head['device']}, driver {head['driver']}, commit {head['commit']}, {versions}. Median of "
        f"{head['rounds']} rounds in rotating order, ratios of the same round; weights are read from memory. "
        "+ quantize: codes of activations are made as well. Random numbers, one in a thousand 20 times as "
        "large. What fails its gate is not timed.\n"
    ]
    if head["small"]:
        parts.append("**Small, on a CPU, with the ops' references: figures mean nothing.**\n")
    parts += [f"**Error of the benchmark:** {error}.\n" for error in errors]
    parts += ["## Targets\n", table(("target", "least", "measured", "at", ""), map(target, verdicts))]
    ratios = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in default.ratios.items())
    rule = f"Rule {default.rule}: " if default.rule else ""
    parts += ["## The default of 8 bits\n", f"{rule}{default.text}. {ratios or 'No path was measured'}.\n"]
    parts += ["## Stages\n", table(("stage", ""), stages.items())]
    wrong = [one for one in figures if one.status == WRONG]
    if wrong:
        rows = [
            (one.stage, one.op, one.scheme, sizes(one), one.contender, clean(one.reason)) for one in wrong
        ]
        parts += ["## Failed gates\n", table(("stage", "op", "scheme", "M, N, K", "contender", ""), rows)]
    for stage in dict.fromkeys(one.stage for one in figures):
        mine = [one for one in figures if one.stage == stage and one.status == OK and one.seconds]
        if mine:
            parts += [f"## {stage}\n", table(COLUMNS, [line(one, mine, of) for one in shown(mine)])]
    lost = [one for one in figures if one.status not in (OK, WRONG)]
    if lost:
        parts += ["## Without time\n", table(("stage", "op", "", "cells"), tally(lost))]
    return "\n".join(parts)


def target(of: Verdict) -> tuple[str, ...]:
    measured = "-" if of.measured is None else f"{of.measured:.2f}"
    return of.title, f"{of.least:.2f}", measured, of.where, of.word


def clean(text: str) -> str:
    return text.replace("|", "/")


def sizes(one: Figure) -> str:
    return ", ".join(str(size) for size in (one.M, one.N, one.K) if size)


def tally(lost: Iterable[Figure]) -> list[tuple[str, ...]]:
    counts: dict[tuple[str, ...], int] = {}
    for one in lost:
        why = one.status if one.status == SKIPPED else f"{one.status}: {clean(one.reason)}"
        key = (one.stage, one.op, why)
        counts[key] = counts.get(key, 0) + 1
    return [(*key, str(count)) for key, count in counts.items()]


def cell(one: Figure) -> tuple[object, ...]:
    return one.op, one.scheme, one.M, one.N, one.K


def shown(figures: Sequence[Figure]) -> list[Figure]:
    """Of each cell the peers, and the fastest of ours, of those that make codes as of the others."""
    best: dict[tuple[object, ...], Figure] = {}
    for one in figures:
        key = (*cell(one), one.quantized, "" if one.ours else one.contender)
        if key not in best or one.median < best[key].median:
            best[key] = one
    return [*best.values()]


def line(one: Figure, all: Sequence[Figure], of: Ceilings) -> tuple[str, ...]:
    low, high = one.middle
    memory, operations = shares(one, of)
    baseline = next(iter(one.over), "")
    theirs = [other for other in all if cell(other) == cell(one) and other.contender == baseline]
    return (
        one.op, one.scheme, sizes(one), f"**{one.contender}**" if one.ours else one.contender,
        f"{one.median * 1e6:.1f} ({low * 1e6:.1f} to {high * 1e6:.1f})",
        f"{theirs[0].median * 1e6:.1f}" if theirs else "-",
        "; ".join(f"{ratio:.2f} {peer}" for peer, ratio in one.over.items() if peer != one.contender) or "-",
        share(one.of_copy), share(memory), share(operations), word(one),
    )  # fmt: skip


def share(of: float | None) -> str:
    return "-" if of is None else f"{of:.0%}"


def word(one: Figure) -> str:
    """Whether it is taken instead of float: only what is clearly faster is."""
    ratio = one.over.get(FLOAT)
    if not one.ours or ratio is None:
        return ""
    if ratio >= 1 / (1 - MEASURED):
        return "take"
    noise = max(NOISE, 1 + one.spread)
    return "tie" if 1 / noise <= ratio <= noise else "refuse"


def draw(figures: Sequence[Figure], path: Path) -> None:
    """Weights of few bits by rows, products of codes by rows, and memory-bound kernels beside a copy."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Picture

    ok = [one for one in shown([one for one in figures if one.status == OK and one.seconds]) if one.ours]
    with mpl.rc_context({"svg.hashsalt": "qcompiler", "svg.fonttype": "none", "font.size": 8}):
        bars = [one for one in ok if one.of_copy is not None]
        picture = Picture(figsize=(13, max(3.8, 0.8 + 0.16 * len(bars))), layout="constrained")
        weights, codes, rows = picture.subplots(1, 3)
        lines(weights, [one for one in ok if one.stage == "weight-only"], "weights of few bits")
        quantized = [one for one in ok if one.stage == "products" and one.quantized]
        lines(codes, quantized, "8 bits, codes of activations made as well")
        places = range(len(bars))
        rows.barh(places, [one.of_copy for one in bars], color="#c8553d")
        rows.set_yticks(places, [f"{one.op} {one.scheme}, {one.M}" for one in bars])
        rows.axvline(1, color="#444444", linewidth=0.6)
        rows.set_title("bytes per second, of a copy's")
        picture.savefig(path, metadata={"Date": None})


def lines(axes: Any, figures: Sequence[Figure], title: str) -> None:
    """Times as fast as bfloat16 by rows, a line for each weight and scheme."""
    found: dict[str, list[tuple[int, float]]] = {}
    for one in figures:
        if FLOAT in one.over:
            found.setdefault(f"{one.scheme}, {one.N} x {one.K}", []).append((one.M, one.over[FLOAT]))
    for name, points in found.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=name)
    axes.axhline(1, color="#444444", linewidth=0.6)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("rows")
    axes.set_title(f"{title}: times as fast as bfloat16")
    if found:
        axes.legend(fontsize=5)
