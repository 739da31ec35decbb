"""`qcompiler train-check`: how far the gradients of training in few bits are from float's."""

from typing import Annotated

import typer

from qcompiler.cli import options
from qcompiler.cli.screen import say, show
from qcompiler.errors import InputError


def run(
    model: options.Model,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="How products are computed: float, int8, fp8-hybrid, ...")
    ] = "int8",
    memory: Annotated[
        str, typer.Option("--memory", "-m", help="How what backward needs is kept: keep, act8, act4, act2.")
    ] = "act4",
    batch: options.Batch = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", min=0.0, help="Distance of the gradients, relative.", show_default=False),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=2, help="Steps of which the mean is taken.")] = 24,
    seed: options.Seed = 0,
) -> None:
    """Compare training in few bits with float, on one batch."""
    from torch import nn

    from qcompiler.cli.source import find_source
    from qcompiler.steps import Steps
    from qcompiler.training.check import train_check

    source = find_source(model, batch=batch)
    if not isinstance(source.model, nn.Module):
        raise InputError(
            f"'{model}' is an exported program", why="a module is trained", fix="name file.py:factory"
        )
    with Steps(visible=True) as steps:
        checked = train_check(
            source.model, source.example_inputs, recipe=recipe, memory=memory, tolerance=tolerance,
            draws=draws, seed=seed, tell=steps.tell,
        )  # fmt: skip
    show(checked.report)
    bias = checked.bias
    say(
        f"The mean of {bias.count} steps is {bias.bias:.4f} from float's gradient; "
        f"without a bias it would be {bias.floor:.4f} (z = {bias.z:.1f})."
    )
