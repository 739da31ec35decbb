"""`qcompiler demo`: the whole road once, on real digits."""

from pathlib import Path
from typing import Annotated

import typer


def run(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where model.onnx and report.html go.")
    ] = Path("out/lenet"),
    train: Annotated[
        bool, typer.Option("--train", help="Train LeNet again instead of reading its checkpoint.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of the engine.", show_default=False)
    ] = None,
) -> None:
    """Compile LeNet to int8 and run it on real digits.

    Writes model.onnx and report.html, and judges the ONNX file on the 360 held-out digits in a plain session.
    """
    from qcompiler import demo
    from qcompiler.cli.screen import say, show

    shown = demo.run(output, train=train, threads=threads)
    show(demo.table(shown))
    say()
    for path in shown.paths:
        say(f"Saved {path}")
    demo.check(shown)
