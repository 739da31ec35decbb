"""`qcompiler report`: what a saved model says about itself."""

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli import options
from qcompiler.cli.screen import say, show, write_json


def run(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `qcompiler compile -o` wrote.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="Write the page here.", show_default=False),
    ] = None,
    json: options.Json = None,
    open: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Print the report of a saved model, or write it as a page."""
    from qcompiler import artifact
    from qcompiler.errors import ArtifactError
    from qcompiler.report import Report

    artifact.read_manifest(folder)
    data = artifact.read_report(folder)
    if not data:
        raise ArtifactError(f"'{folder}' has no report", why="report.json is missing", fix="compile it again")
    report = Report(data)
    if json is not None:
        write_json(report.to_dict(), json)
    page = report.save(output) if output is not None else None
    if str(json) != "-":
        show(report.rich())
        if page is not None:
            say(f"\nSaved in {page}")
    if open:
        typer.launch(str((page or existing_page(folder)).resolve()))


def existing_page(folder: Path) -> Path:
    from qcompiler.errors import ArtifactError

    page = folder / "report.html"
    if not page.is_file():
        raise ArtifactError(
            f"'{folder}' has no page", why="report.html is missing", fix="write one with -o FILE.html"
        )
    return page
