"""`qcompiler export`: a QDQ ONNX file, and what ONNX Runtime makes of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompiler.cli import options
from qcompiler.cli.screen import complain, say

if TYPE_CHECKING:
    from qcompiler.passes.check import Contract


def run(
    model: options.Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.onnx", help="The file to write.")],
    recipe: options.RecipeName = "int8",
    target: options.TargetName = "cpu",
    calibration: options.Calibration = None,
    override: options.Overrides = None,
    opset: Annotated[
        int | None, typer.Option("--opset", help="Of ONNX; 21 or 23 if absent.", show_default=False)
    ] = None,
    portable: Annotated[
        bool, typer.Option("--portable/--engine", help="Standard operators only, or ONNX Runtime's own, too.")
    ] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if a layer planned in integers runs in float.")
    ] = False,
) -> None:
    """Write a quantized model as an ONNX file.

    The file is loaded back and compared with the exact reference before it is put in place.
    """
    from qcompiler import api, artifact
    from qcompiler.cli.recipes import chosen_recipe
    from qcompiler.cli.source import find_source

    wanted = chosen_recipe(recipe, override)
    artifact.check_onnx_file(output)
    source = find_source(model, calibration=calibration)
    contract = api.export_onnx(
        source.model, source.example_inputs, output, calibration=source.calibration, recipe=wanted,
        target=target, opset=opset, portable=portable, strict=strict,
    )  # fmt: skip
    for warning in warnings_of(contract):
        complain(warning, kind="warning")
    say(f"{summary(contract)}; saved in {output} ({output.stat().st_size / 1e6:.2f} MB)")


def summary(contract: "Contract") -> str:
    """6 of 6 planned layers run in integers (2 conv2d, 2 max_pool2d, 2 linear)"""
    planned = [row for row in contract.rows if row.layer.precision != "float"]
    kept = [row for row in planned if not row.is_surprise]
    kinds = {
        op: sum(row.layer.op == op for row in kept) for op in dict.fromkeys(row.layer.op for row in kept)
    }
    counted = ", ".join(f"{count} {op}" for op, count in kinds.items())
    return f"{len(kept)} of {len(planned)} planned layers run as planned{f' ({counted})' if counted else ''}"


def warnings_of(contract: "Contract") -> list[str]:
    found = [
        f"{row.layer.label} ({row.layer.op}) was planned in {row.layer.precision} "
        f"and runs in {row.executed}: {row.reason}"
        for row in contract.surprises
    ]
    return [*found, *(f"{name} stands between two integer kernels" for name in contract.stray)]
