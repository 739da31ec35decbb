"""`qcompiler tune`: measure the kernels of a model's layers, so that a backend takes the fastest."""

import time
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from qcompiler.cli import options, tune_gpu, tune_left, tune_refused
from qcompiler.cli.screen import complain, say, show, write_json
from qcompiler.cli.stop import STOPPED
from qcompiler.errors import InputError

if TYPE_CHECKING:
    from qcompiler.backends.tvm.floatpath.tuning import Tuned as TunedFloats
    from qcompiler.backends.tvm.tuning import Tuned

BACKEND, GPU = "tvm", "triton"
ROWS = tuple(2**power for power in range(13))  # 1 to 4096: every bucket of ops, from one token to a prompt


def run(
    model: options.ModelIfAny = None,
    target: options.TargetName = "cpu",
    recipe: options.RecipeName = "int8",
    trials: Annotated[int, typer.Option("--trials", min=2, help="Schedules to try per layer.")] = 8,
    time_budget: Annotated[
        float | None,
        typer.Option("--time-budget", metavar="SECONDS", min=0, help="Begin no layer after so long.",
                     show_default=False),
    ] = None,
    database: options.Database = None,
    tracker: Annotated[
        str | None,
        typer.Option("--tracker", metavar="HOST:PORT", help="Measure on the servers of this TVM tracker.",
                     show_default=False),
    ] = None,
    key: Annotated[str, typer.Option("--key", help="Of the servers at the tracker.")] = "cpu",
    rows: Annotated[
        list[int] | None,
        typer.Option("--rows", metavar="M", min=1, show_default="1, 2, 4 ... 4096",
                     help="Rows of a linear's input, on target 'cuda'; may be given often."),
    ] = None,
    problem: Annotated[
        list[str] | None,
        typer.Option("--problem", metavar="TEXT", show_default=False,
                     help="Instead of MODEL, on target 'cuda': an op with its sizes, as the warning names it "
                     "that ran without a row; may be given often."),
    ] = None,
    no_device: Annotated[
        bool, typer.Option("--no-device", help="Predict and compile for target 'cuda', and measure nothing.")
    ] = False,
    calibration: options.Calibration = None,
    override: options.Overrides = None,
    batch: options.Batch = None,
    seed: options.Seed = 0,
    json: options.Json = None,
) -> None:  # fmt: skip
    """Measure the schedules of a model's layers, or of ops on a GPU.

    Layers that have rows in the database are left out, so a run that was stopped goes on where it was; Ctrl-C
    prints what was measured till then.
    """
    from qcompiler import artifact
    from qcompiler.cli.recipes import chosen_recipe
    from qcompiler.cli.source import find_source
    from qcompiler.target import find_target
    from qcompiler.tune.database import default_path, open_database

    wanted, aim = chosen_recipe(recipe, override), find_target(target, BACKEND)
    if aim.backend not in (BACKEND, GPU):
        raise InputError(f"there is nothing to tune for '{target}'", why="its kernels are not generated")
    is_gpu = aim.backend == GPU
    if not is_gpu and (rows or no_device or problem):
        raise InputError("--rows, --problem and --no-device are of GPUs", fix="add --target cuda")
    if (model is None) == (not problem):
        raise InputError("there is no one thing to tune", fix="name a model, or problems by --problem")
    if json is not None and str(json) != "-":
        artifact.check_writable_file(json)
    asked = tune_gpu.problems_named(problem or [], rows or [])
    if is_gpu and not no_device:
        tune_gpu.check_device()
    source = None if model is None else find_source(model, calibration=calibration, batch=batch)
    with open_database(database or default_path()) as kept:
        if kept.remark:
            complain(kept.remark, kind="warning")
        began, worked = time.monotonic(), time.process_time()
        budget = float("inf") if time_budget is None else time_budget
        if is_gpu:
            readings = {} if source is None else tune_gpu.readings_in(source, wanted, aim, seed)
            wishes = tune_gpu.Wishes(readings=readings, rows=rows or ROWS, problems=asked)
            found = (
                tune_gpu.foreseen(wishes, aim) if no_device
                else tune_gpu.measured(wishes, kept, trials, budget)
            )  # fmt: skip
        else:
            found = on_cpu(source, wanted, aim, kept, (tracker, key), trials, budget, seed)
        told = {
            "model": model or "", "database": str(kept.path), "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(time.process_time() - worked, 1), **found,
        }  # fmt: skip
    if json is not None:
        write_json(told, json)
    if str(json) != "-":
        show_table = tune_gpu.draw if is_gpu else draw
        show_table(told)
    if told.get("stopped"):
        raise typer.Exit(STOPPED)


def on_cpu(
    source: Any, recipe: Any, aim: Any, rows: Any, where: tuple[str | None, str], trials: int, budget: float,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """What is known of layers and float ops afterwards, as plain values."""
    known, floats, left, peak, is_stopped = measured(source, recipe, aim, rows, where, trials, budget, seed)
    return {
        "left": left, "stopped": is_stopped, "peak_gops": None if peak is None else peak / 1e9,
        "layers": [figures(layer, peak) for layer in known],
        "floats": [float_figures(group) for group in floats],
        "refused": tune_refused.figures(row for group in floats for row in group.refused),
    }  # fmt: skip


def measured(
    source: Any, recipe: Any, aim: Any, rows: Any, where: tuple[str | None, str], trials: int, budget: float,
    seed: int,
) -> "tuple[list[Tuned], list[TunedFloats], int, float | None, bool]":  # fmt: skip
    """What is known of layers and float ops afterwards, how many were not reached, this machine's peak, and
    whether Ctrl-C ended it.

    Float ops are measured beside torch, so here and on no other machine.
    """
    import torch

    from qcompiler.backends.tvm import Tvm
    from qcompiler.backends.tvm.build import processor_for
    from qcompiler.backends.tvm.floatpath import tuning as floats
    from qcompiler.backends.tvm.measure import LocalBench
    from qcompiler.backends.tvm.peak import peak
    from qcompiler.backends.tvm.tuning import jobs, known, layers_of, tune
    from qcompiler.job import take
    from qcompiler.passes.decide import decide
    from qcompiler.passes.forms import forms
    from qcompiler.proof import quantized
    from qcompiler.steps import Steps
    from qcompiler.tune.database import Core

    tracker, key = where
    if tracker is None:
        isa = Tvm(aim).isa
        processor = processor_for(isa).name
    else:
        from qcompiler.backends.tvm.remote import Remote

        remote = Remote(tracker, key)
        isa, processor = remote.isa, remote.processor
    core, top = Core(isa=isa.name, processor=processor), None if tracker else peak(isa)
    with Steps(visible=True) as steps, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        job = take(
            source.model, source.example_inputs, source.calibration, steps.tell, forms=forms(recipe, aim)
        )
        graph = quantized(decide(job.original, job.data, recipe, aim, tell=steps.tell))
        layers = layers_of(graph, aim, job.timed, isa)
        groups = {} if tracker else floats.groups_in(graph, aim, job.timed, isa)
        waiting = jobs(layers, rows.rows(core), core, isa, trials)
        crew = remote.crew if tracker else lambda: [LocalBench]
        until = (
            time.monotonic() + budget
        )  # from here on, so that every run gets on however long a model takes
        is_stopped = False
        try:
            left = tune(waiting, rows, crew, core, isa, until=until, peak=top, tell=steps.tell)
            behind = floats.jobs(list(groups), rows.rows(core), core, trials)
            left += floats.tune(behind, rows, core, isa, until=until, tell=steps.tell)
        except KeyboardInterrupt:  # all that was measured is kept, and is told
            is_stopped, kept = True, rows.rows(core)
            left = len(jobs(layers, kept, core, isa, trials))
            left += len(floats.jobs(list(groups), kept, core, trials))
    found = rows.rows(core)
    return known(layers, found, isa), floats.known(groups, found), left, top, is_stopped


def figures(layer: "Tuned", peak: float | None) -> dict[str, Any]:
    """One layer as plain values; `predicted_ratio` is how much slower the choice without measurement is."""
    seconds, guess = layer.best.seconds, layer.predicted_seconds
    return {
        "workload": layer.workload, "calls": layer.calls, "schedule": layer.best.configuration,
        "us": seconds * 1e6, "spread": layer.best.spread, "rounds": layer.best.rounds,
        "gops": layer.rate / 1e9, "of_peak": None if peak is None else layer.rate / peak,
        "predicted": layer.predicted,
        "predicted_ratio": None if guess is None else guess / seconds,
    }  # fmt: skip


def float_figures(group: "TunedFloats") -> dict[str, Any]:
    """One function of floats as plain values."""
    told = {field.name: getattr(group, field.name) for field in fields(group)}
    return {**told, "refused": len(group.refused)}


def draw_floats(groups: list[dict[str, Any]]) -> None:
    """Who computes the ops on floats, beside what torch takes."""
    if not groups:
        return
    table = Table(box=None, pad_edge=False)
    for name in ("ops on floats", "computed by"):
        table.add_column(name, overflow="fold", header_style="dim")
    for name in ("calls", "us", "torch", "predicted"):
        table.add_column(name, justify="right", header_style="dim")
    for group in groups:
        others = (group["torch_seconds"], group["predicted_seconds"])
        ratios = ["" if one is None else f"{one / group['seconds']:.2f}x" for one in others]
        table.add_row(
            Text(group["title"]), Text(group["best"]), str(group["calls"]), f"{group['seconds'] * 1e6:.1f}",
            *ratios,
        )  # fmt: skip
    show(table)


def draw(told: dict[str, Any]) -> None:
    """Layer by layer what is best, and what the choice without measurement would cost."""
    layers = told["layers"]
    if layers:
        table = Table(box=None, pad_edge=False)
        for name in ("layer", "schedule"):
            table.add_column(name, overflow="fold", header_style="dim")
        for name in ("calls", "us", "GOP/s", "of peak", "predicted"):
            table.add_column(name, justify="right", header_style="dim")
        for layer in layers:
            share, ratio = layer["of_peak"], layer["predicted_ratio"]
            table.add_row(
                Text(layer["workload"]), Text(layer["schedule"]), str(layer["calls"]),
                f"{layer['us']:.1f}", f"{layer['gops']:.0f}", "" if share is None else f"{share:.0%}",
                "" if ratio is None else f"{ratio:.2f}x",
            )  # fmt: skip
        show(table)
        total = sum(layer["us"] * layer["calls"] for layer in layers)
        guess = sum(layer["us"] * layer["calls"] * (layer["predicted_ratio"] or 1) for layer in layers)
        say(
            f"\n{total / 1e3:.2f} ms in all; {guess / total:.3f}x of it with the schedules predicted on paper"
        )
    draw_floats(told["floats"])
    tune_refused.draw(told["refused"])
    say(f"Rows in {told['database']}; {told['seconds']:.0f} s")
    tune_left.draw(told, "layers")
