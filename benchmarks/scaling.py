"""One training step shared by more and more processes: time, flops, memory, and bytes that cross.

    python -m benchmarks.scaling [--processes 1 2 4] [--rounds 9] [--out benchmarks/results/scaling.json]

Strong scaling: a LLaMA-style decoder and a global batch that stay the same, by DistributedDataParallel. A
process has a GPU and NCCL where there are GPUs, and one core and gloo where not. Gradients cross in float,
int8 and FP8. All are made ready first; then they run in interleaved rounds in rotating order, by the clock.
A speed-up is the time of one process over that of several in the same round, and the median counts. Flops,
memory and bytes are counted in a step of each process (replicas.py); those of the busiest are told. Writes
JSON, Markdown and SVG.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.process import Worker
from benchmarks.records import commit, machine, table, versions, write_down
from benchmarks.replicas import WAYS, Counted, Work, train
from qcompiler.models.decoder import Shape
from qcompiler.tune.measure import rotated

ALONE = (1, "float")
PATIENCE = 600.0
STEPS = 3  # of a way in a round
LARGEST = 8

WORKS: Mapping[str, Work] = {
    "cpu": Work(
        shape=Shape(vocabulary=128, width=256, hidden=768, depth=4, heads=4, kv_heads=4, positions=64),
        batch=16,
    ),
    "cuda": Work(
        shape=Shape(
            vocabulary=32000, width=1024, hidden=2816, depth=12, heads=16, kv_heads=16, positions=512
        ),
        batch=32,
        device="cuda",
    ),
}
"""By device: a step of a fraction of a second on one of them."""


def places(device: str) -> list[int]:
    """The cores that this process may use, or the GPUs."""
    if device == "cuda":
        return [*range(torch.cuda.device_count())]
    return (
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
    )


class Group:
    """So many processes that train together, in all ways that make sense for them."""

    def __init__(self, work: Work, world: int, folder: Path, stack: ExitStack) -> None:
        self.ways = ["float"] if world == 1 else [*WAYS]  # one process sends nothing, in whatever format
        self.world = world
        at, cores = places(work.device), places("cpu")
        meeting = str(folder / f"meeting-{world}")
        share = max(1, len(cores) // len(at)) if work.device == "cuda" else 1
        self.workers = [
            stack.enter_context(
                Worker(
                    train, work, rank, world, self.ways, meeting,
                    cores=[cores[(rank * share + each) % len(cores)] for each in range(share)],
                    log=folder / f"log-{world}-{rank}",
                )
            )
            for rank in range(world)
        ]  # fmt: skip

    def counted(self) -> dict[str, list[Counted]]:
        """By way, of every process."""
        found: list[dict[str, Counted]] = [worker.receive(patience=PATIENCE) for worker in self.workers]
        return {way: [of[way] for of in found] for way in self.ways}

    def seconds(self, way: str) -> float:
        """Of one step, by the slowest."""
        for worker in self.workers:
            worker.send((way, STEPS))
        return max(float(worker.receive(patience=PATIENCE)) for worker in self.workers)

    def end(self) -> None:
        for worker in self.workers:
            worker.send(None)


def measure(work: Work, counts: Sequence[int], rounds: int, folder: Path) -> list[dict[str, Any]]:
    """One case for each count of processes and way; that of one process is the first."""
    with ExitStack() as stack, Progress() as progress:
        groups = [Group(work, world, folder, stack) for world in counts]
        counted = {(group.world, way): of for group in groups for way, of in group.counted().items()}
        seconds: dict[tuple[int, str], list[float]] = {case: [] for case in counted}
        task = progress.add_task("rounds", total=rounds * len(seconds))
        by_count = {str(group.world): group for group in groups}
        for turn in range(rounds):
            for group in (by_count[count] for count in rotated([*by_count], turn)):
                for way in rotated(group.ways, turn):
                    seconds[group.world, way].append(group.seconds(way))
                    progress.advance(task)
        for group in groups:
            group.end()
    return [case(world, way, counted[world, way], seconds) for world, way in counted]


def case(
    world: int, way: str, counted: Sequence[Counted], seconds: Mapping[tuple[int, str], Sequence[float]]
) -> dict[str, Any]:
    """What is told of so many processes in one way: times by round, and counts of the busiest process."""
    ratios = [alone / ours for alone, ours in zip(seconds[ALONE], seconds[world, way], strict=True)]
    speed_up = statistics.median(ratios)
    return {
        "processes": world, "gradients": way, "seconds": list(seconds[world, way]),
        "ms": statistics.median(seconds[world, way]) * 1e3,
        "speed_up": speed_up, "efficiency": speed_up / world,
        **{name: most(found[name] for found in map(asdict, counted)) for name in asdict(counted[0])},
    }  # fmt: skip


def most(figures: Any) -> int | None:
    known = [figure for figure in figures if figure is not None]
    return max(known) if known else None


def page(result: Mapping[str, Any]) -> str:
    columns = (
        "processes", "gradients", "ms a step", "speed-up", "efficiency", "GFLOP a process", "held", "peak",
        "gradients sent", "written to sockets",
    )  # fmt: skip
    rows = [
        (str(of["processes"]), of["gradients"], f"{of['ms']:.0f}", f"{of['speed_up']:.2f}x",
         f"{of['efficiency']:.0%}", f"{of['flops'] / 1e9:.2f}", megabytes(of["held"]), megabytes(of["peak"]),
         megabytes(of["sent"]), megabytes(of["written"]))
        for of in result["cases"]
    ]  # fmt: skip
    shape, parameters = result["shape"], result["parameters"] / 1e6
    head = (
        f"A decoder of width {shape['width']} and {shape['depth']} layers, {parameters:.1f} M parameters; "
        f"{result['batch']} x {shape['positions']} tokens for all processes.\n\n"
        f"{result['device']}, commit {result['commit']}, median of {result['rounds']} interleaved rounds. "
        "Flops, memory and bytes are those of the busiest process in one step.\n\n"
    )
    return head + table(columns, rows)


def megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.2f} MB"


PANELS = {
    "speed-up": ("speed_up", 1.0),
    "GFLOP a process and step": ("flops", 1e9),
    "peak memory of a process, MB": ("peak", 1e6),
    "gradients sent by a process, MB": ("sent", 1e6),
}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """The strong-scaling chart: processes along, a line for each way."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    counts = sorted({of["processes"] for of in result["cases"]})
    with mpl.rc_context({"svg.hashsalt": "qcompiler", "svg.fonttype": "none", "font.size": 8}):
        picture = Figure(figsize=(3.2 * len(PANELS), 3), layout="constrained")
        for axes, (title, (name, unit)) in zip(
            picture.subplots(1, len(PANELS), squeeze=False).flat, PANELS.items(), strict=True
        ):
            if name == "speed_up":
                axes.plot(counts, counts, color="#999999", linestyle=":", label="ideal")
            for way, marker in zip(WAYS, "os^", strict=True):
                line = {of["processes"]: of[name] / unit for of in result["cases"]
                        if of["gradients"] == way or of["processes"] == 1}  # fmt: skip
                axes.plot(sorted(line), [line[count] for count in sorted(line)], marker=marker, label=way)
            axes.set_title(title)
            axes.set_xticks(counts)
            axes.set_xlabel("processes")
            axes.set_ylim(bottom=0)
        picture.axes[0].legend(fontsize=7)
        picture.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    most_of = min(len(places(device)), LARGEST)
    default = [count for count in (1, 2, 4, 8) if count <= most_of]
    parser.add_argument("--processes", type=int, nargs="+", default=default)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    given = parser.parse_args()
    at, work = commit(), WORKS[device]
    counts = sorted({1, *given.processes})
    if counts[-1] > most_of or any(work.batch % count for count in counts):
        parser.error(f"{counts}: at most {most_of} here, and divisors of {work.batch}, the global batch")
    with tempfile.TemporaryDirectory() as folder:
        cases = measure(work, counts, given.rounds, Path(folder))
    result = {
        "commit": at, **machine(), "versions": versions(("torch",)), "rounds": given.rounds,
        "device": torch.cuda.get_device_name() if device == "cuda" else machine()["cpu"],
        "shape": asdict(work.shape), "batch": work.batch, "cases": cases,
        "parameters": sum(parameter.numel() for parameter in work.model().parameters()),
    }  # fmt: skip
    write_down(result, page(result), given.out)
    draw(result, given.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
