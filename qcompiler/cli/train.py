"""`qcompiler train`: a model trained in few bits, with float beside it."""

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli import options
from qcompiler.cli.screen import complain, say, show, write_json
from qcompiler.cli.stop import STOPPED, stopped_gently
from qcompiler.errors import ArtifactError, ContractError, QCompilerError


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="bert, llama, or `file.py:factory`. A factory takes nothing and returns (module, batches, "
            "loss[, validation]): batches are pairs (inputs, target), in a list, a loader or from a "
            "generator function, and loss(module(*inputs), target) is a number.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="How products are computed: float, int8, fp8-hybrid, ...")
    ] = "int8",
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            "-m",
            show_default=False,
            help="How what backward needs is kept: keep, act8, act4, act2, a share of float's peak (0.5) or "
            "bytes.  [default: act4, act8 for llama]",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", "-n", min=1, help="Batches to train on.")] = 300,
    batch: Annotated[
        int | None,
        typer.Option("--batch", "-b", min=1, help="Rows of a batch of bert or llama.", show_default=False),
    ] = None,
    before: Annotated[
        int | None,
        typer.Option(
            "--before",
            metavar="N",
            min=0,
            show_default=False,
            help="Steps in float before, of bert or llama.  [default: 800, 400 for llama]",
        ),
    ] = None,
    optimizer: Annotated[
        str, typer.Option("--optimizer", help="adamw, adam, sgd, or adamw8bit, adam8bit, sgd8bit.")
    ] = "adamw",
    rate: Annotated[
        float | None,
        typer.Option("--learning-rate", min=0.0, help="The highest; it rises and falls.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", min=0.0, help="Distance of the gradients, relative.", show_default=False),
    ] = None,
    seed: options.Seed = 0,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Of torch; all cores if absent.", show_default=False),
    ] = None,
    float_: Annotated[bool, typer.Option("--float/--no-float", help="Train in float beside it.")] = True,
    guard: Annotated[
        bool, typer.Option("--guard/--no-guard", help="Keep products in float that are no faster in int8.")
    ] = True,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Begin with these weights.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write the page.", show_default=False)
    ] = None,
    json: options.Json = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the weights: .safetensors or .pt.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a model in few bits, with float beside it."""
    import torch

    from qcompiler.artifact import check_writable_file
    from qcompiler.cli.lines import Lines
    from qcompiler.cli.task import defaults, find_task
    from qcompiler.cli.train_bar import TrainingBar
    from qcompiler.report import html, training
    from qcompiler.steps import Steps
    from qcompiler.training.finetune.checkpoint import (
        check_checkpoint,
        check_weights,
        save_weights,
        try_to_write,
    )
    from qcompiler.training.finetune.run import Settings, fine_tune
    from qcompiler.training.memory import number

    usual_memory, usual_rate = defaults(model)
    settings = Settings(
        recipe=recipe, memory=number(memory or usual_memory), steps=steps, optimizer=optimizer,
        rate=usual_rate if rate is None else rate, seed=seed, tolerance=tolerance, has_float=float_,
        guard=guard,
    )  # fmt: skip
    if json is not None and str(json) != "-":
        check_writable_file(json)
        try_to_write(json)
    if report is not None:
        check_page(report)
        try_to_write(report)
    if output is not None:
        check_checkpoint(output)
    if weights is not None:
        check_weights(weights)
    if threads is not None:
        torch.set_num_threads(threads)
    lines = Lines()
    with Steps(visible=True) as bar:

        def tell(what: str, done: int, total: int | None) -> None:
            bar.tell(what, done, total)
            lines.tell(what, done, total)

        try:
            task = find_task(model, batch=batch, seed=seed, before=before, weights=weights, tell=tell)
        except KeyboardInterrupt:
            bar.bar.stop()
            complain("nothing was trained in few bits yet, and nothing is written", kind="warning")
            raise
    with stopped_gently() as is_over, TrainingBar(steps) as line:
        trained = fine_tune(task, settings, tell=line.tell, watch=line.watch, is_over=is_over)
    if json is not None:
        write_json(trained.data, json)
    if report is not None:
        html.write(training.page(trained.data), report)
    if output is not None and not trained.failure:
        save_weights(trained.module, output)
    if str(json) != "-":
        show(training.table(trained.data))
        for path in (report, json, output if not trained.failure else None):
            if path is not None:
                say(f"Saved {path}")
    if trained.failure:
        raise diverged(trained.failure)
    if trained.data["done"] < steps:
        raise typer.Exit(STOPPED)


def check_page(path: Path) -> None:
    """Refuse early what is no name for a page, or could not be written at the end."""
    from qcompiler.artifact import check_writable_file

    check_writable_file(path)
    if path.suffix not in (".html", ".htm"):
        raise ArtifactError(
            f"'{path}' is no name for a page",
            why="browsers know one by its ending",
            fix=f"write '{path.with_suffix('.html')}'",
        )


def diverged(what: str) -> QCompilerError:
    from qcompiler.training.finetune.loop import OF_DATA

    if OF_DATA in what:
        return ContractError(
            what, why="the data is not finite", fix="mend the batches; the weights were not saved"
        )
    return ContractError(
        what,
        why="the training diverges",
        fix="take a lower --learning-rate, or look at the data; the weights were not saved",
    )
