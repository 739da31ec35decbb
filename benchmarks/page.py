"""The result as Markdown: speed and SQNR side by side, then everything else."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.records import table

DETAILS = (
    "workload", "contender", "ms", "rounds", "same answer", "MB on disk", "prepare s", "ready s", "memory MB",
)  # fmt: skip


def page(result: Mapping[str, Any]) -> str:
    """The whole page; `result` is what the JSON file holds."""
    return "\n".join([setting(result), overview(result), legend(result), details(result)])


def setting(result: Mapping[str, Any]) -> str:
    machine, protocol = result["machine"], result["protocol"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"Speed against ONNX Runtime float, {how(protocol['threads'])}, median of {protocol['rounds']} "
        f"interleaved rounds, one process per contender; SQNR against torch float on the same inputs.\n\n"
        f"{machine['cpu']} ({', '.join(machine['features'])}), commit {result['commit']}, {versions}.\n"
    )


def how(threads: int) -> str:
    return "one thread, CPU time" if threads == 1 else f"{threads} threads, time by the clock"


def overview(result: Mapping[str, Any]) -> str:
    """Contenders down, workloads across."""
    cells = {(cell["contender"], cell["workload"]): cell for cell in result["cells"]}
    reasons = footnotes(result["cells"])
    rows = []
    for name, contender in result["contenders"].items():
        found = [cells.get((name, workload)) for workload in result["workloads"]]
        if any(found):
            title = f"**{contender['title']}**" if contender["ours"] else contender["title"]
            rows.append([title, *(short(cell, reasons) for cell in found)])
    return table(["", *(workload["title"] for workload in result["workloads"].values())], rows)


def short(cell: Mapping[str, Any] | None, reasons: Mapping[str, int]) -> str:
    """`**3.36x** 28.9 dB` where it is the fastest; the speed in brackets where it does not count."""
    if cell is None:
        return "-"
    if cell["status"] == "failed":
        return f"failed [{reasons[cell['reason']]}]"
    if cell["status"] != "ok":
        return str(cell["status"])
    speed = f"{cell['speed']:.2f}x"
    shown = f"**{speed}**" if cell["best"] else speed if cell["counts"] else f"({speed})"
    return f"{shown} {decibel(cell)}"


def decibel(cell: Mapping[str, Any]) -> str:
    return "exact" if cell["sqnr_db"] is None else f"{cell['sqnr_db']:.1f} dB"


def footnotes(cells: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Reason -> its number, in order of appearance."""
    reasons = dict.fromkeys(cell["reason"] for cell in cells if cell["status"] == "failed")
    return {reason: number for number, reason in enumerate(reasons, 1)}


def legend(result: Mapping[str, Any]) -> str:
    floors = "; ".join(
        f"{workload['title']} {db:g} dB with {bits} bits"
        for workload in result["workloads"].values()
        for bits, db in workload["floor_db"].items()
    )
    lines = [
        "Rows in bold are ours; a speed in bold is the fastest of its workload among weights of as many "
        "bits; a speed in brackets does not count, since its SQNR is below the floor"
        + (f" ({floors})." if floors else ".")
    ]
    absent = missing(result["cells"])
    if absent:
        lines.append("Not installed: " + "; ".join(absent) + ".")
    lines += [f"[{number}] {reason}" for reason, number in footnotes(result["cells"]).items()]
    return "\n\n".join(lines) + "\n"


def missing(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    return [*dict.fromkeys(cell["reason"] for cell in cells if cell["status"] == "not installed")]


def details(result: Mapping[str, Any]) -> str:
    """One row for everything that ran."""
    titles = {
        "contender": {name: contender["title"] for name, contender in result["contenders"].items()},
        "workload": {name: workload["title"] for name, workload in result["workloads"].items()},
    }
    return table(DETAILS, [
        [
            titles["workload"][cell["workload"]],
            titles["contender"][cell["contender"]],
            f"{cell['milliseconds']:.3g}",
            f"{min(cell['ratios']):.2f} to {max(cell['ratios']):.2f}",
            f"{cell['agreement']:.1%}",
            figure(cell["megabytes"]),
            figure(cell["prepare_s"]),
            figure(cell["ready_s"]),
            figure(cell["memory_mb"]),
        ]
        for cell in result["cells"]
        if cell["status"] == "ok"
    ])  # fmt: skip


def figure(number: float | None) -> str:
    return "-" if number is None else f"{number:.1f}" if number < 100 else f"{number:.0f}"
