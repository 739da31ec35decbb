"""`qcompiler compile`: quantize, prove, show, and write the artifact if all guarantees hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcompiler.cli import options
from qcompiler.cli.screen import say, show, write_json
from qcompiler.errors import ContractError, InputError, QCompilerError

if TYPE_CHECKING:
    from qcompiler.api import Compiled
    from qcompiler.cli.source import Source


def run(
    model: options.Model,
    recipe: options.RecipeName = "int8",
    target: options.TargetName = "cpu",
    backend: Annotated[str, typer.Option("--backend", help="auto, ort, tvm, triton or reference.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write the artifact here.", show_default=False),
    ] = None,
    json: options.Json = None,
    calibration: options.Calibration = None,
    override: options.Overrides = None,
    batch: options.Batch = None,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    database: options.Database = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if a layer planned in integers runs in float.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Quantize a model, prove it, and report what runs.

    The engine is compared with the exact reference and with float. Exit code 0 means that every guarantee
    holds.
    """
    from qcompiler import api, artifact
    from qcompiler.cli.recipes import chosen_recipe
    from qcompiler.cli.source import find_source

    wanted = chosen_recipe(recipe, override)
    if output is not None:
        artifact.check_replaceable(output)
    if json is not None and str(json) != "-":
        artifact.check_writable_file(json)
    source = find_source(model, calibration=calibration, batch=batch)
    compiled = api.compile(
        source.model, source.example_inputs, calibration=source.calibration, recipe=wanted, target=target,
        backend=backend, strict=strict, whole=True, threads=threads, seed=seed, database=database,
        progress=not quiet,
    )  # fmt: skip
    compiled = judged(compiled, source)
    if json is not None:
        write_json(compiled.report().to_dict(), json)
    to_stdout = str(json) == "-"
    if not quiet and not to_stdout:
        show(compiled.report().rich())
    check_guarantees(compiled.data)
    if output is not None:
        compiled.save(output)
        if not quiet and not to_stdout:
            say(f"\nSaved in {output}")


def judged(compiled: "Compiled", source: "Source") -> "Compiled":
    """With the task metric of the model, if it has one."""
    if source.metric is None:
        return compiled
    from qcompiler.ir.failure import first_line, user_position

    try:
        return compiled.measured(source.metric, source.model, weights_are_random=source.weights_are_random)
    except QCompilerError:
        raise
    except Exception as error:
        raise InputError(
            f"the metric of '{source.name}' fails", node=user_position(error), why=first_line(error),
            fix="mend it, or leave it out",
        ) from error  # fmt: skip


def check_guarantees(data: Mapping[str, Any]) -> None:
    """Raise ContractError where the engine is further from the reference than allowed."""
    distance, nodes = data["accuracy"]["distance"], data["accuracy"]["nodes"]
    if not distance["within"]:
        raise ContractError(
            f"the output is {distance['max_lsb']:.3g} LSB from the reference",
            why=f"{distance['bound_lsb']:.3g} are allowed",
            fix="nothing was saved; report it with the model, or use another recipe",
        )
    if nodes["within"] is False:
        far = next(node for node in nodes["worst"] if node["max_lsb"] > node["allowed"])
        raise ContractError(
            f"a layer is {far['max_lsb']:.3g} LSB from the reference", node=far["label"],
            why=f"{far['allowed']} are allowed", fix="nothing was saved; report it with the model",
        )  # fmt: skip
