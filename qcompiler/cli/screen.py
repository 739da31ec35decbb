"""What a person sees: results on stdout, progress and complaints on stderr."""

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

PIPE_WIDTH = 120  # of a table that goes to a file or a pipe


def stdout() -> Console:
    """Colours for a terminal, plain text of a fixed width for everything else."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def show(what: "RenderableType") -> None:
    console = stdout()
    if console.is_terminal:
        console.print(what)
        return
    with console.capture() as captured:
        console.print(what)
    for line in captured.get().splitlines():
        say(line.rstrip())  # a table fills its lines with spaces


def say(line: str = "") -> None:
    """A line as it is: a path in it stays whole, a bracket in it is no markup."""
    stdout().print(Text(line), soft_wrap=True)


def complain(sentence: str, *, kind: str = "error") -> None:
    """One line on stderr, whatever the message contains."""
    line = "".join(letter if letter.isprintable() else " " for letter in sentence)
    text = Text.assemble(
        (f"{kind}:", "bold red" if kind == "error" else "bold yellow"), f" {' '.join(line.split())}"
    )
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def write_json(data: Any, path: "Path") -> None:
    """JSON to a file as a whole or not at all; `-` is stdout."""
    from qcompiler.artifact import json_text
    from qcompiler.report.html import write

    if str(path) == "-":
        sys.stdout.write(json_text(data))
    else:
        write(json_text(data), path)
