"""`qcompiler bench`: float against quantized in one process, interleaved, in CPU time."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from qcompiler.cli import options
from qcompiler.cli.screen import say, show, write_json
from qcompiler.errors import RecipeError

if TYPE_CHECKING:
    from qcompiler.cli.source import Source
    from qcompiler.recipe import Recipe
    from qcompiler.tune.measure import Timing

FLOAT = "float"


def run(
    model: options.Model,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe", "-r", help="As for compile; may be repeated.  [default: int8]", show_default=False
        ),
    ] = None,
    target: options.TargetName = "cpu",
    calibration: options.Calibration = None,
    override: options.Overrides = None,
    batch: options.Batch = None,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    json: options.Json = None,
) -> None:
    """Time a model in float and as each recipe makes it."""
    from qcompiler import artifact
    from qcompiler.cli.recipes import chosen_recipe
    from qcompiler.cli.source import find_source
    from qcompiler.target.machine import this_cpu

    recipes = [chosen_recipe(name, override) for name in recipe or ["int8"]]
    twice = {one.name for one in recipes if [other.name for other in recipes].count(one.name) > 1}
    if twice or FLOAT in (one.name for one in recipes):
        raise RecipeError(
            f"the name '{next(iter(twice), FLOAT)}' stands for two recipes", fix="give each a name of its own"
        )
    if json is not None and str(json) != "-":
        artifact.check_writable_file(json)
    source = find_source(model, calibration=calibration, batch=batch)
    timing = measured(source, recipes, target=target, threads=threads, seed=seed)
    figures = [row(timing, name) for name in (FLOAT, *(one.name for one in recipes))]
    setting = {"model": model, "threads": threads, "batch": rows_of(source), "clock": "CPU seconds per call"}
    cpu = this_cpu()
    if json is not None:
        write_json({**setting, "cpu": {"name": cpu.name, "features": cpu.features}, "results": figures}, json)
    if str(json) != "-":
        say(f"{cpu.name}: {', '.join(cpu.features) or 'no features that matter'}")
        cores = f"{threads} threads" if threads else "all cores"
        say(f"{model}, batch {rows_of(source)}, {cores}, CPU time per call; the ratios are against float\n")
        show(drawn(figures))


def measured(
    source: "Source", recipes: "list[Recipe]", *, target: str, threads: int | None, seed: int
) -> "Timing":
    """Each recipe's model and the float one in turn, round after round, on the example inputs."""
    import torch

    from qcompiler.backends import AUTO, find_backend
    from qcompiler.job import take
    from qcompiler.passes.decide import decide
    from qcompiler.passes.forms import forms
    from qcompiler.proof import quantized
    from qcompiler.rewrite import run as applied
    from qcompiler.steps import Steps
    from qcompiler.target import find_target
    from qcompiler.tune.measure import ROUNDS, interleave

    aim = find_target(target)
    with Steps(visible=True) as steps, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        job = take(source.model, source.example_inputs, source.calibration, steps.tell)
        graphs = {FLOAT: job.original} | {
            recipe.name: quantized(
                decide(applied(forms(recipe, aim), job.original), job.data, recipe, aim, tell=steps.tell)
            )
            for recipe in recipes
        }
        steps.tell("lowering")
        backend = find_backend(AUTO, aim)
        engines = {name: backend.lower(graph, threads=threads) for name, graph in graphs.items()}
        done = iter(range(1, ROUNDS + 1))
        return interleave(
            {name: partial(engine, job.timed) for name, engine in engines.items()},
            tick=lambda: steps.tell("timing", next(done), ROUNDS),
        )


def row(timing: "Timing", name: str) -> dict[str, Any]:
    ratios = timing.ratios(FLOAT, name)
    return {
        "name": name, "ms": timing.median(name) * 1e3, "ratio_min": min(ratios),
        "ratio": timing.ratio(FLOAT, name), "ratio_max": max(ratios), "rounds": len(ratios),
    }  # fmt: skip


def drawn(figures: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("ms", "min", "median", "max"):
        table.add_column(name, justify="right", header_style="dim")
    for figure in figures:
        ratios = [f"{figure[key]:.2f}x" for key in ("ratio_min", "ratio", "ratio_max")]
        table.add_row(figure["name"], f"{figure['ms']:.3f}", *(ratios if figure["name"] != FLOAT else ()))
    return table


def rows_of(source: "Source") -> int:
    from torch import Tensor
    from torch.utils import _pytree as pytree

    return next(
        (x.shape[0] for x in pytree.tree_leaves(source.example_inputs) if isinstance(x, Tensor) and x.dim()),
        1,
    )
