"""`qcompiler export`: a QDQ ONNX file, or the float ops of a model as CUDA C++."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from qcompiler.cli import options
from qcompiler.cli.screen import complain, say, show
from qcompiler.errors import InputError

if TYPE_CHECKING:
    from qcompiler.cli.source import Source
    from qcompiler.passes.check import Contract


FORMATS = ("onnx", "cuda")


def run(
    model: options.Model,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE.onnx", help="The file to write; a folder for cuda."),
    ],
    format: Annotated[
        str, typer.Option("--format", help="onnx, or cuda: float ops as CUDA C++, compiled without a GPU.")
    ] = "onnx",
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
    arch: Annotated[
        str, typer.Option("--arch", help="Of the GPU, for cuda: sm_80, sm_86, sm_89, sm_90.")
    ] = "sm_80",
) -> None:
    """Write a quantized model as an ONNX file.

    The file is loaded back and compared with the exact reference before it is put in place.
    With --format cuda, fusions and odd ops on floats are written as CUDA C++ instead, with a manifest.
    """
    if format not in FORMATS:
        raise InputError(f"there is no format '{format}'", fix=f"choose one of {', '.join(FORMATS)}")
    if format == "cuda":
        export_cuda(find_source_of(model), output, arch)
        return
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


def find_source_of(model: str) -> "Source":
    from qcompiler.cli.source import find_source

    return find_source(model)


def export_cuda(source: "Source", folder: Path, architecture: str) -> None:
    """The float graph's groups, one file each, for the shapes of the example."""
    from qcompiler.backends.tvm.executable import shapes_of
    from qcompiler.backends.tvm.floatpath.cuda import emitted, write
    from qcompiler.ir import trace
    from qcompiler.passes.canonicalize import CANONICAL
    from qcompiler.rewrite.pipeline import run as rewritten

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"'{folder}' is no empty folder", fix="name another, which is made")
    graph = rewritten(CANONICAL, trace(source.model, source.example_inputs))
    found = emitted(graph, shapes_of(graph), architecture)
    files = write(found, folder)
    table = Table(box=None, pad_edge=False)
    for name in ("function", "ops", "blocks x threads", "bytes"):
        table.add_column(name, overflow="fold", header_style="dim")
    for each in found.functions:
        ops = ", ".join(op.split(".")[1] for op in each.ops)
        launches = ", ".join(f"{prod(one.blocks)} x {prod(one.threads)}" for one in each.launches)
        table.add_row(each.name, Text(ops), launches, str(each.bytes))
    if found.functions:
        show(table)
    reasons = Counter(found.left.values())
    for reason, count in reasons.most_common():
        complain(f"{count} nodes are not covered: {reason}", kind="warning")
    say(f"{len(found.functions)} functions for {architecture}, {len(files)} files in {folder}")


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
