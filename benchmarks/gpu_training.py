"""Training large models on a GPU: peak memory and time of a step, ours beside bfloat16 as torch has it.

    python -m benchmarks.gpu_training [--models ...] [--out benchmarks/results/gpu_training.json]
    python -m benchmarks.gpu_training --device cpu --small --out out/gpu_training.json

Every contender is a process of its own (trainee.py), and all of a model are there at once: those whose
compiling times nothing are made ready together, the others one by one, and then they run in interleaved
rounds, one at a time, by the GPU's own clock. A ratio compares with torch.compile in bfloat16 of the same
round, and the median counts. Memory is the allocator's, and others do not matter to it. Whoever fails is a
row with the reason; who found no memory beside others is tried once more when these are ready. What the
processes print, tracebacks among it, is in a log beside the results.

Results are written after each model, and those of other models stay in the file if they are of the same
commit, device and versions: models can be measured in several runs. Needs torch, Triton and rich. `--device
cpu --small` runs the same code without a GPU; its figures mean nothing. Writes JSON, Markdown and SVG.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.contest import contest
from benchmarks.large import LARGE, SMALL
from benchmarks.process import Lost, Worker
from benchmarks.records import commit, machine, table, versions, write_down
from benchmarks.trainee import BASELINE, CONTENDERS, REFERENCE, Figures, Work, train
from qcompiler.progress import Tell
from qcompiler.tune.measure import Timing

PATIENCE = 300.0  # seconds until a contender has to be ready; a plan of a large model takes some
SLICE = 0.5
LESS, SLOWER, PAR = 3.0, 1.10, 1.0  # the targets: bytes, a step that stores, a step with products in few bits
CORES = 2  # of a process, at least: one captures graphs, others compile kernels


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where and how long is measured.

    slice: seconds of a contender in a round. patience: seconds until it has to be ready. log: what all print.
    """

    device: str
    small: bool
    rounds: int
    slice: float
    patience: float
    log: Path


def measure(names: Sequence[str], model: str, settings: Settings, tell: Tell) -> list[dict[str, Any]]:
    """One case for each contender, whatever becomes of it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        at = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        cores = sorted(at)
        workers: dict[str, Worker] = {}
        ready: dict[str, Figures] = {}
        lost: dict[str, str] = {}

        def prepare(group: Sequence[str]) -> None:
            tell(f"{model}: preparing {', '.join(group)}", len(ready), len(names))
            started = {}
            share = max(min(CORES, len(cores)), len(cores) // len(group))
            for place, name in enumerate(group):
                own = [cores[(place * share + each) % len(cores)] for each in range(share)]
                work = Work(
                    model=model, contender=name, device=settings.device, small=settings.small, folder=folder
                )  # fmt: skip
                started[name] = stack.enter_context(Worker(train, work, cores=own, log=settings.log))
            for name, worker in started.items():
                try:
                    ready[name] = worker.receive(patience=settings.patience)
                    workers[name] = worker
                    lost.pop(name, None)
                except Lost as error:
                    worker.close()
                    lost[name] = str(error)

        for group in groups(names):
            prepare(group)
        for name in [name for name, reason in lost.items() if "OutOfMemory" in reason]:
            prepare([name])
        turns = iter(range(settings.rounds + 1))
        tell(f"{model}: rounds", next(turns), settings.rounds)
        timing, failed = contest(
            workers, rounds=settings.rounds, slice=settings.slice,
            tick=lambda: tell(f"{model}: rounds", next(turns), settings.rounds),
        )  # fmt: skip
        for worker in workers.values():
            worker.close()
    lost |= failed
    return [case(model, name, ready.get(name), timing, lost.get(name, "")) for name in names]


def groups(names: Sequence[str]) -> list[list[str]]:
    """Who is prepared together: the reference first, and what measures by itself one after the other."""
    plain = [name for name in names if name != REFERENCE and not CONTENDERS[name].measures]
    alone = [[name] for name in names if CONTENDERS[name].measures]
    return [group for group in ([name for name in names if name == REFERENCE], plain, *alone) if group]


def case(model: str, name: str, figures: Figures | None, timing: Timing, reason: str) -> dict[str, Any]:
    """What is told of a contender. slower: its step over the baseline's, None where that did not run."""
    ran = name in timing.seconds
    return {
        "model": model, "contender": name, "reason": reason,
        "ms": timing.median(name) * 1e3 if ran else None,
        "seconds": list(timing.seconds.get(name, ())),
        "slower": timing.ratio(name, BASELINE) if ran and BASELINE in timing.seconds else None,
        **(asdict(figures) if figures else {}),
    }  # fmt: skip


def page(result: Mapping[str, Any]) -> str:
    head = (
        f"{result['device']}, commit {result['commit']}, torch {result['versions']['torch']}. Products in "
        "bfloat16 by autocast, weights in float32; forward, loss and backward, no optimizer; median of "
        f"{result['rounds']} interleaved rounds. held: bytes of the allocator between forward and "
        "backward; peak: of the step, gradients among it; both beyond what is there before. gradient: its "
        "distance from float32's.\n\n"
    )
    parts = [head]
    for model, title in result["models"].items():
        cases = {each["contender"]: each for each in result["cases"] if each["model"] == model}
        rows = [line(each, cases.get(BASELINE, {})) for each in cases.values()]
        columns = (
            "contender", "ms a step", "of bf16 compile's", "held", "below", "peak", "below", "gradients",
            "crosses, as planned", "in few bits", "loss", "gradient", "ready",
        )  # fmt: skip
        parts.append(f"## {title}\n\n{table(columns, rows)}\n")
    verdicts = targets(result["cases"])
    parts.append("## Targets\n\n" + table(("model", "contender", "target", "measured", ""), verdicts))
    return "".join(parts)


def line(of: Mapping[str, Any], baseline: Mapping[str, Any]) -> tuple[str, ...]:
    """The row of one contender; of one that failed, the reason."""
    if of["reason"]:
        return (of["contender"], of["reason"].replace("|", "/"), *[""] * 11)
    crosses = "-"
    if of["crossing"] is not None:
        crosses = f"{size(of['crossing_before'])} -> {size(of['crossing'])}"
    return (
        of["contender"], f"{of['ms']:.1f}", told(of["slower"], "{:.2f}x"),
        size(of["held"]), told(below(of, baseline, "held"), "{:.2f}x"),
        size(of["peak"]), told(below(of, baseline, "peak"), "{:.2f}x"), size(of["left"]), crosses,
        "-" if of["few"] is None else f"{of['few']} of {of['products']}",
        f"{of['loss']:.4f}", told(of["gradient"], "{:.4f}"), f"{of['ready']:.0f} s",
    )  # fmt: skip


def below(of: Mapping[str, Any], baseline: Mapping[str, Any], what: str) -> float | None:
    """How many times fewer bytes than the baseline; None where one of them is not known."""
    ours, theirs = of.get(what), baseline.get(what)
    return theirs / ours if ours and theirs else None


def told(figure: float | None, form: str) -> str:
    return "-" if figure is None else form.format(figure)


def size(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


Verdict = tuple[str, str, str, str, str]
"""Model, contender, target, what was measured, whether that meets it."""


def targets(cases: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Each target for each of our contenders: of what stores, or of what computes products in few bits."""
    baselines = {of["model"]: of for of in cases if of["contender"] == BASELINE}
    found = []
    for of in cases:
        how, baseline = CONTENDERS[of["contender"]], baselines.get(of["model"], {})
        if how.engine == "ours" and how.recipe == "float":
            found += [stores(of, baseline, what) for what in ("held", "peak")]
        elif how.engine == "ours":
            found.append(computes(of))
    return found


def stores(of: Mapping[str, Any], baseline: Mapping[str, Any], what: str) -> Verdict:
    """So many times fewer bytes than the baseline has, in a step that is hardly slower."""
    less, slower = below(of, baseline, what), of["slower"]
    verdict = "not measured"
    if less is not None and slower is not None:
        verdict = "met" if less >= LESS and slower <= SLOWER else "not met"
    measured = of["reason"] or f"{told(less, '{:.2f}x')} below at {told(slower, '{:.2f}x')} the time"
    return of["model"], of["contender"], f"{what} {LESS:g}x below, {SLOWER:.2f}x the time", measured, verdict


def computes(of: Mapping[str, Any]) -> Verdict:
    """A step that is not slower than the baseline's, where products were selected for few bits."""
    slower, few = of["slower"], of.get("few")
    verdict = "not measured"
    if slower is not None:
        verdict = "none was selected" if not few else "met" if slower <= PAR else "not met"
    measured = of["reason"] or f"{told(slower, '{:.2f}x')} the time, {few} of {of['products']} in few bits"
    return of["model"], of["contender"], f"{PAR:g}x the time", measured, verdict


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A panel for each model, a point for each contender: time along, peak memory up."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    models = result["models"]
    with mpl.rc_context({"svg.hashsalt": "qcompiler", "svg.fonttype": "none", "font.size": 8}):
        picture = Figure(figsize=(4.5 * len(models), 3.6), layout="constrained")
        panels = picture.subplots(1, len(models), squeeze=False).flat
        for axes, (model, title) in zip(panels, models.items(), strict=True):
            for of in result["cases"]:
                if of["model"] != model or of["reason"]:
                    continue
                ours = CONTENDERS[of["contender"]].engine == "ours"
                point = of["ms"], of["peak"] / 1e9
                axes.plot(*point, marker="o" if ours else "s", color="#c8553d" if ours else "#5b7b9a")
                axes.annotate(of["contender"], point, xytext=(4, 3), textcoords="offset points")
            axes.set_title(title)
            axes.set_xlabel("ms a step")
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
            axes.margins(x=0.35)
        picture.axes[0].set_ylabel("peak of a step, GB")
        picture.savefig(path, metadata={"Date": None})


def kept(out: Path, head: Mapping[str, Any], models: Sequence[str]) -> list[dict[str, Any]]:
    """The cases of other models from a file of the same commit, device, versions and rounds."""
    before = json.loads(out.read_text()) if out.exists() else {}
    if any(before.get(key) != value for key, value in head.items()):
        return []
    return [each for each in before["cases"] if each["model"] not in models]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=[*LARGE], default=[*LARGE])
    parser.add_argument("--contenders", nargs="+", choices=[*CONTENDERS], default=[*CONTENDERS])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds to be ready in")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="models on which a CPU runs the same code")
    parser.add_argument("--commit", help="what is measured, where the checkout has no history")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_training.json"))
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here that torch can use; --device cpu --small runs the same code on a CPU.")
    head = {
        "commit": given.commit or commit(), **machine(), "versions": versions(("torch", "triton")),
        "device": torch.cuda.get_device_name() if given.device == "cuda" else machine()["cpu"],
        "small": given.small, "rounds": given.rounds,
    }  # fmt: skip
    subjects = SMALL if given.small else LARGE
    cases = kept(given.out, head, given.models)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        device=given.device, small=given.small, rounds=given.rounds, slice=SLICE, patience=given.patience,
        log=given.out.with_suffix(".log"),
    )  # fmt: skip
    settings.log.unlink(missing_ok=True)
    with Progress() as progress:
        task = progress.add_task("", total=None)

        def tell(what: str, done: int, total: int | None) -> None:
            progress.update(task, description=what, completed=done, total=total)

        for model in given.models:
            cases += measure(given.contenders, model, settings, tell)
            measured = [name for name in LARGE if any(each["model"] == name for each in cases)]
            ordered = [each for name in measured for each in cases if each["model"] == name]
            titles = {name: subjects[name].title for name in measured}
            result = {**head, "models": titles, "cases": ordered}
            write_down(result, page(result), given.out)
            draw(result, given.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
