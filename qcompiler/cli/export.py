"""`qcompiler export`: a QDQ ONNX file, a library of machine code, or float ops as CUDA C++."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qcompiler.cli import options
from qcompiler.cli.screen import complain, say
from qcompiler.errors import InputError

if TYPE_CHECKING:
    from qcompiler.backends.tvm.library import Library
    from qcompiler.cli.source import Source
    from qcompiler.passes.check import Contract
    from qcompiler.recipe import Recipe


def run(
    model: options.Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.onnx|DIR", help="The file or folder to write.")
    ],
    format: Annotated[
        Literal["onnx", "library", "cuda"],
        typer.Option(
            "--format",
            "-f",
            help="A file for any engine, a folder of machine code for this CPU, or float ops as CUDA C++.",
        ),
    ] = "onnx",
    recipe: options.RecipeName = "int8",
    target: options.TargetName = "cpu",
    calibration: options.Calibration = None,
    override: options.Overrides = None,
    opset: Annotated[
        int | None, typer.Option("--opset", help="Of ONNX; 21 or 23 if absent.", show_default=False)
    ] = None,
    batch: options.Batch = None,
    isa: Annotated[
        str | None,
        typer.Option(
            "--isa", help="Of a library: an instruction set of less than this CPU.", show_default=False
        ),
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
    """Write a quantized model as ONNX, or as machine code of its own.

    Either is loaded back and compared before it is put in place: the file with the exact reference, the
    library with the compiled model. A library takes inputs of the example's shapes. With --format cuda,
    fusions and odd ops on floats are written as CUDA C++ instead, with a manifest.
    """
    from qcompiler import api, artifact
    from qcompiler.cli.export_cuda import export_cuda
    from qcompiler.cli.recipes import chosen_recipe
    from qcompiler.cli.source import find_source

    if format == "cuda":
        export_cuda(find_source(model), output, arch)
        return
    wanted = chosen_recipe(recipe, override)
    if format == "library":
        if opset is not None or not portable:
            raise InputError("--opset and --engine speak of ONNX", fix="leave them out for a library")
        artifact.check_replaceable(output)
        source = find_source(model, calibration=calibration, batch=batch)
        made = write_library(source, output, wanted, target, isa=isa, strict=strict)
        sizes = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in made.files.items())
        say(f"equal to the compiled model to the last bit; saved in {output} ({sizes})")
        return
    if isa is not None:
        raise InputError("--isa speaks of a library", fix="add --format library, or leave it out")
    artifact.check_onnx_file(output)
    source = find_source(model, calibration=calibration, batch=batch)
    contract = api.export_onnx(
        source.model, source.example_inputs, output, calibration=source.calibration, recipe=wanted,
        target=target, opset=opset, portable=portable, strict=strict,
    )  # fmt: skip
    for warning in warnings_of(contract):
        complain(warning, kind="warning")
    say(f"{summary(contract)}; saved in {output} ({output.stat().st_size / 1e6:.2f} MB)")


def write_library(
    source: "Source", output: Path, recipe: "Recipe", target: str, *, isa: str | None, strict: bool
) -> "Library":
    """The model compiled for kernels of our own, with the guarantees of `qcompiler compile`, and exported."""
    from qcompiler import api
    from qcompiler.cli.compile import check_guarantees

    compiled = api.compile(
        source.model, source.example_inputs, calibration=source.calibration, recipe=recipe, target=target,
        backend="tvm", strict=strict, whole=True, threads=1, progress=False,
    )  # fmt: skip
    check_guarantees(compiled.data)
    return api.export_library(compiled, source.example_inputs, output, isa=isa)


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
