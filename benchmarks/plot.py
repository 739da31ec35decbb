"""The result as a picture: a panel per workload, a bar per contender, its SQNR beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

OURS, THEIRS, UNCOUNTED = "#c8553d", "#5b7b9a", "#d5dbe1"
ACROSS = 2


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture; the ending of the path says in which format."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = [name for name in result["workloads"] if bars(result, name)]
    if not panels:
        return
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    longest = max(len(bars(result, name)) for name in panels)
    # The figure itself and not pyplot: no window system, nothing remembered between two pictures.
    with mpl.rc_context({"svg.hashsalt": "qcompiler", "svg.fonttype": "none", "font.size": 8}):
        picture = Figure(figsize=(6 * across, down * (0.24 * longest + 0.9)), layout="constrained")
        for axes, name in zip(picture.subplots(down, across, squeeze=False).flat, panels, strict=False):
            panel(axes, result, name)
        for axes in picture.axes[len(panels) :]:
            axes.set_axis_off()
        picture.supxlabel("speed against ONNX Runtime float; pale: SQNR below the floor", fontsize=8)
        picture.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def bars(result: Mapping[str, Any], workload: str) -> list[Mapping[str, Any]]:
    """The cells of a workload that ran, slowest first: bars are drawn upwards."""
    ran = [cell for cell in result["cells"] if cell["workload"] == workload and cell["status"] == "ok"]
    return sorted(ran, key=lambda cell: float(cell["speed"]))


def panel(axes: Any, result: Mapping[str, Any], workload: str) -> None:
    found = bars(result, workload)
    contenders = result["contenders"]
    places = range(len(found))
    axes.barh(places, [cell["speed"] for cell in found], color=[colour(cell, contenders) for cell in found])
    axes.set_yticks(places, [contenders[cell["contender"]]["title"] for cell in found])
    axes.axvline(1, color="#444444", linewidth=0.6)
    axes.set_xlim(0, 1.25 * max(cell["speed"] for cell in found))
    for place, cell in zip(places, found, strict=True):
        noise = "" if cell["sqnr_db"] is None else f"  {cell['sqnr_db']:.0f} dB"
        axes.text(cell["speed"], place, f" {cell['speed']:.2f}x{noise}", va="center")
    axes.set_title(result["workloads"][workload]["title"], loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)


def colour(cell: Mapping[str, Any], contenders: Mapping[str, Any]) -> str:
    if not cell["counts"]:
        return UNCOUNTED
    return OURS if contenders[cell["contender"]]["ours"] else THEIRS
