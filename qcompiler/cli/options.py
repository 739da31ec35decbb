"""The arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

MODEL = typer.Argument(
    metavar="MODEL",
    help="A built-in name (`qcompiler models` lists them), `file.py:factory`, or a `.pt2` program. "
    "A factory takes nothing and returns (module, example_inputs[, calibration[, metric]]), or an object "
    "with these attributes; an nn.Module may carry example_inputs itself.",
    show_default=False,
)
Model = Annotated[str, MODEL]
ModelIfAny = Annotated[str | None, MODEL]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        help="int8, int8-mixed, int8-dynamic, w8a16, w4a16, w4a16-best, fp8, fp8-dynamic, or a .json file.",
    ),
]
TargetName = Annotated[str, typer.Option("--target", "-t", help="Where the model will run.")]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        "-c",
        metavar="FILE",
        help=".npz or .safetensors with one array per input, named as the argument; rows are samples.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        metavar="PATTERN:KEY=VALUE[,...]",
        help="Other settings for matching layers, as in 'layer4.*:activations=float'. May be repeated.",
        show_default=False,
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch", "-b", min=1, help="Rows of the example inputs; timed with these.", show_default=False
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of the engine; all cores if absent.", show_default=False),
]
Seed = Annotated[int, typer.Option("--seed", help="Of every random choice.")]
Database = Annotated[
    Path | None,
    typer.Option(
        "--database",
        metavar="FILE",
        help="Measured schedules of our own kernels; if absent, the file that QCOMPILER_DATABASE names, or "
        "one in the user's cache folder.",
        show_default=False,
    ),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the data as JSON; - for stdout.", show_default=False),
]
