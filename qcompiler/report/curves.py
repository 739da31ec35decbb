"""The loss of a training over its steps, one learner beside another, as inline SVG."""

from collections.abc import Mapping
from typing import Any

from qcompiler.report.plots import FLOAT, INTEGER, MARK, styled, svg
from qcompiler.report.summary import part
from qcompiler.report.words import is_finite

# Colour, widths of training and validation, opacity. Float is a band on which few bits are a line: where
# the two agree both are seen.
LOOKS = ((MARK, 4.0, 7.0, 0.45), (INTEGER, 0.9, 2.0, 1.0))
SMOOTHED = 10  # steps, over which the difference of training losses is averaged


def loss_curves(data: Mapping[str, Any]) -> str:
    """Training losses thin, validation losses bold; below, by how much few bits are above float."""
    from matplotlib.figure import Figure

    learners = {name: row for name, row in part(data, "learners").items() if row.get("losses")}
    if not learners:
        return ""
    with styled():
        figure = Figure(figsize=(12, 5.2 if len(learners) > 1 else 3.9), layout="constrained")
        panels = figure.subplots(
            2 if len(learners) > 1 else 1, sharex=True, squeeze=False, height_ratios=[3, 1][: len(learners)]
        )
        axes = panels[0][0]
        looks = LOOKS[-len(learners) :]
        for (name, row), (colour, thin, bold, opaque) in zip(learners.items(), looks, strict=True):
            steps = range(1, len(row["losses"]) + 1)
            axes.plot(
                steps, row["losses"], color=colour, linewidth=thin, alpha=opaque, label=f"{name}, training"
            )
            if row.get("validation"):
                axes.plot(
                    *zip(*row["validation"], strict=True), color=colour, linewidth=bold, alpha=opaque,
                    marker="o", markersize=bold + 2, label=f"{name}, validation",
                )  # fmt: skip
        axes.set_ylabel(f"loss, {data['unit']}" if data.get("unit") else "loss")
        axes.grid(axis="y")
        axes.legend(loc="upper right", ncols=len(learners))
        if len(learners) > 1:
            differences(panels[1][0], *list(learners.values())[:2])
        panels[-1][0].set_xlabel("step")
        panels[-1][0].set_xlim(left=0)
        return svg(figure, "loss", "Loss of training and validation over the steps", {})


def differences(axes: Any, plain: Mapping[str, Any], low: Mapping[str, Any]) -> None:
    apart = [b - a for a, b in zip(plain["losses"], low["losses"], strict=False)]
    blocks = [apart[start : start + SMOOTHED] for start in range(0, len(apart), SMOOTHED)]
    ends = [min(SMOOTHED * (i + 1), len(apart)) for i in range(len(blocks))]
    axes.axhline(0, color=FLOAT, linewidth=0.8)
    axes.plot(ends, [sum(block) / len(block) for block in blocks], color=INTEGER, linewidth=0.9, alpha=0.8)
    judged = zip(plain.get("validation", ()), low.get("validation", ()), strict=False)
    points = [(step, b - a) for (step, a), (_, b) in judged if is_finite(a) and is_finite(b)]
    if points:
        axes.plot(*zip(*points, strict=True), color=INTEGER, linewidth=2.2, marker="o", markersize=4)
    axes.set_ylabel("above float")
    axes.grid(axis="y")
